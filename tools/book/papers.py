"A page per paper: its tables and figures with what our records say about their claims, read from the ledger"
import re
from pathlib import Path
from typing import NamedTuple


class Paper(NamedTuple):
    "What the ledger says of a paper"
    key: str                # its folder: 'cmae'
    intro: str              # title of the paper, and how many of its tables and figures have an item
    head: list[str]         # the first two lines of its table
    rows: list[str]         # the lines of its table, links seen from its own folder
    items: dict[str, str]   # 'table-1a/table.md' -> title


def papers(ledger: str) -> list[Paper]:
    "Every section of the ledger"
    found = []
    for section in re.split(r'(?m)^## ', ledger)[1:]:
        key, _, body = section.partition('\n')
        lines = [line.replace(f']({key}/', '](') for line in body.splitlines() if line.startswith('|')]
        items = dict(re.findall(r'\]\(([\w./-]+)\): (.+?) \|', '\n'.join(lines)))
        found.append(Paper(key.strip(), ' '.join(line for line in body.splitlines() if line and not line.startswith('|')), lines[:2], lines[2:], items))
    return found


def titles(paper: Paper) -> dict[str, str]:  # page -> title
    "A title for each item that no other item of the paper has"
    known = list(paper.items.values())
    return {page: title if known.count(title) == 1 else f'{title} ({Path(page).parent})' for page, title in paper.items.items()}


def page(paper: Paper, name: str, folder: Path,
         notebooks: list[tuple[str, str]],  # address and title of those that draw its items
         ) -> str:
    "The page of a paper: verdicts first, then its figures, each leading to its item"
    parts = [f'# {name}', paper.intro, 'Drawn in ' + ', '.join(f'[{title}]({address})' for address, title in notebooks) + '.' if notebooks else '',
             'Each line is a claim of a table or figure and what our records say about it at three scales; the [ledger](../README.md) has all papers.',
             '\n'.join([*paper.head, *paper.rows]), '## Figures']
    parts.append('<div class="figures" markdown>')
    for item, title in titles(paper).items():
        drawn = next((picture for picture in ('figure.svg', 'figure.png') if (folder / item).with_name(picture).is_file()), None)
        if drawn:
            parts.append(f'<figure markdown>\n[![{title}]({Path(item).parent / drawn}){{ loading=lazy }}]({item})\n<figcaption markdown>[{title}]({item})</figcaption>\n</figure>')
    parts.append('</div>')
    return '\n\n'.join(part for part in parts if part) + '\n'
