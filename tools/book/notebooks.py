"Notebooks as pages: what was written, the code, and the outputs as they were stored"
import ast
import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pymdownx.slugs import slugify

slug = slugify(case='lower')
fences = re.compile(r'(?ms)(^```.*?^```[ \t]*$|\$\$.*?\$\$)')  # splitting by it leaves code and formulas at the odd places
silent = 'data-search-exclude=1'  # code and outputs are not searched: names are found on the pages of the modules
pictures = {'image/svg+xml': 'svg', 'image/png': 'png', 'image/jpeg': 'jpg'}


def prose(text: str, change: Callable[[str], str]) -> str:
    "`change` what is neither code in a fence nor a formula"
    parts = fences.split(text)
    return ''.join(part if i % 2 else change(part) for i, part in enumerate(parts))


def headings(text: str) -> Iterator[str]:
    "The headings of some Markdown, without marks"
    for part in fences.split(text)[::2]:
        for line in re.findall(r'(?m)^#+ +(.+?) *$', part):
            yield re.sub(r'[`*]|\]\([^)]*\)|\[', '', line)


@dataclass(frozen=True)
class Notebook:
    "One notebook of the book"
    path: Path

    @cached_property
    def cells(self) -> list[tuple[str, str, list[dict]]]:  # kind, source, outputs
        "Its cells"
        return [(cell['cell_type'], ''.join(cell['source']), cell.get('outputs', [])) for cell in json.loads(self.path.read_text(encoding='utf-8'))['cells']]

    @cached_property
    def title(self) -> str:
        "What its first heading says"
        return next(headings(self.cells[0][1]), self.path.stem)

    @cached_property
    def summary(self) -> str:
        "The line that stands under the title"
        found = re.search(r'(?m)^> *(.+)$', self.cells[0][1])
        return found[1] if found else ''

    @cached_property
    def module(self) -> str:
        "The module it is exported to, '' for none"
        found = re.search(r'(?m)^#\| *default_exp +([\w.]+)', '\n'.join(source for _, source, _ in self.cells))
        return f'mimrepro.{found[1]}' if found else ''


def directives(source: str) -> set[str]:
    "Words of the `#|` lines of a cell"
    return set(re.findall(r'(?m)^#\| *(\w+)', source))


def places(notebook: Notebook) -> dict[str, tuple[str, str]]:  # 'window', 'CMAE', 'CMAE.draw' -> anchor and heading
    "The section in which each exported name is defined"
    anchor, heading, seen, found = '', '', {}, {}
    for kind, source, _ in notebook.cells:
        if kind == 'markdown':
            for heading in headings(source):
                anchor = slug(heading, '-')
                seen[anchor] = seen.get(anchor, -1) + 1
                anchor += f'_{seen[anchor]}' if seen[anchor] else ''
        elif kind == 'code' and 'export' in directives(source):
            found |= dict.fromkeys(defined(ast.parse(source)), (anchor, heading))
    return found


def defined(tree: ast.Module) -> Iterator[str]:
    "Names that a cell defines; a patched function belongs to its class"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(mark).startswith('patch') for mark in node.decorator_list):
            for owner in re.findall(r'\w+', ast.unparse(node.args.args[0].annotation)):
                yield f'{owner}.{node.name}'
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))


def spaced(text: str) -> str:
    "Lists and tables as Python's Markdown wants them: after a blank line, inner ones behind four spaces, and no backslash before a bar in code"
    text = re.sub(r'(?m)^(?![ \t|>#*+-]|\d+\. )(.+)\n(?=(?:[*+-]|1\.) )', r'\1\n\n', text)
    text = re.sub(r'(?m)^ {2,3}(?=(?:[*+-]|\d+\.) )', '    ', text)
    return re.sub(r'(?m)^\|.*$', lambda line: re.sub('`[^`]*`', lambda code: code[0].replace(r'\|', '|'), line[0]), text)


def fenced(text: str, *marks: str) -> str:
    "A block of code that may hold fences of its own"
    fence = '`' * max([3, *(len(run) + 1 for run in re.findall('`{3,}', text))])
    return f'{fence} {{ {" ".join(marks)} }}\n{text}\n{fence}'


def output_markdown(output: dict, name: str, about: str) -> tuple[str, dict[str, bytes]]:  # Markdown, pictures by file name
    "A stored output: a picture, a table or text"
    data = output.get('data', {})
    for kind, ending in pictures.items():
        if kind in data:
            stored = ''.join(data[kind])
            return f'![{about}]({name}.{ending}){{ .output }}', {f'{name}.{ending}': stored.encode() if ending == 'svg' else base64.b64decode(stored)}
    if 'text/markdown' in data:
        text = re.sub(r'(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)', r'\1', ''.join(data['text/markdown']))  # its links are seen from the folder that it was written for
        text = prose(text, lambda part: re.sub(r'(?m)^#', '###', part))
        return f'<div class="output" markdown>\n\n{text}\n\n</div>', {}
    if 'text/html' in data:
        return '<div class="output">' + re.sub(r'\n\s*\n', '\n', ''.join(data['text/html'])) + '</div>', {}
    text = ''.join(output.get('text', data.get('text/plain', '')))
    text = re.sub(r'\x1b\[[\d;]*m', '', text).rstrip()
    return fenced(text, '.text', '.output', silent) if text else '', {}


def page(notebook: Notebook,
         about: str = '',  # a line to put under the title
         ) -> tuple[str, dict[str, bytes]]:  # Markdown, pictures by file name
    "A notebook as Markdown; cells that are hidden from readers stay hidden"
    parts, found, section = [], {}, notebook.title
    for number, (kind, source, outputs) in enumerate(notebook.cells):
        if kind == 'markdown':
            section = [section, *headings(source)][-1]
            parts.append(prose(source, spaced))
            continue
        words = directives(source)
        code = re.sub(r'(?m)^#\|.*\n?', '', source).strip('\n')
        if kind != 'code' or 'hide' in words:
            continue
        if code:
            parts.append(fenced(code, '.python', silent, *(['.exported'] if 'export' in words else [])))
        for place, output in enumerate(outputs):
            text, files = output_markdown(output, f'{notebook.path.stem}_files/{number}-{place}', f'Output of the section {section}')
            parts.append(text)
            found |= files
    parts[0] = re.sub(r'(?m)^(# .+)$', rf'\1\n\n{about}', parts[0], count=1) if about else parts[0]
    return '\n\n'.join(parts) + '\n', found
