"README.md from nbs/index.ipynb: the same text and code, links seen from the top of the repository. What both say about results is first written anew from the records."
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
INDEX, START, END = ROOT / 'nbs' / 'index.ipynb', '<!-- from the records -->', '<!-- end -->'


def verdict_table() -> str:
    "How many claims hold at each scale, as the ledger counts them"
    lines = [line[2:].split(': ') for line in (ROOT / 'paper_figures' / 'README.md').read_text().splitlines() if line.startswith('- ')]
    counts = {scale: dict(reversed(part.split(' ', 1)) for part in said.split(', ')) for scale, said in lines}
    words = list(next(iter(counts.values())))
    return '\n'.join(['| claims, by scale | ' + ' | '.join(words) + ' |', '|---' + '|--:' * len(words) + '|', *(f'| {scale} | ' + ' | '.join(found[word] for word in words) + ' |' for scale, found in counts.items())])


def method_table() -> str:
    "The five methods after the same number of images: of several groups of records the one that saw most, seeds averaged"
    groups = defaultdict(lambda: defaultdict(dict))
    for line in (ROOT / 'paper_figures' / 'methods' / 'equal-images' / 'runs.jsonl').read_text().splitlines():
        record = json.loads(line)
        groups[record['images_seen'], record['data'], record['scale']][record['row']][record['seed']] = record
    (seen, data, scale), rows = max(groups.items(), key=lambda group: (len(group[1]), group[0][0]))
    mean = lambda records, name: fmean(record['metrics'][name] for record in records.values())
    first = next(iter(next(iter(rows.values())).values()))
    table = [f'| {seen:,} images of {data.split(".")[0]}, {first["recipe"]["model"]["img_size"]} pixels | linear | untrained | kNN | class token, linear |', '|---|--:|--:|--:|--:|']
    return '\n'.join(table + [f'| {name} | ' + ' | '.join(f'{mean(records, key):.1f}' for key in ('lin', 'untrained_lin', 'knn', 'lin_cls')) + ' |' for name, records in rows.items()])


def write_results():
    "Bring the cell of the index that stands between the marks up to date"
    notebook = json.loads(INDEX.read_text())
    for cell in notebook['cells']:
        text = ''.join(cell['source'])
        if START in text:
            before, rest = text.split(START)
            new = f'{before}{START}\n\n{verdict_table()}\n\n{method_table()}\n\n{END}{rest.split(END)[1]}'
            cell['source'] = new.splitlines(keepends=True)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'
    if text != INDEX.read_text():
        INDEX.write_text(text)


def readme() -> str:
    "The index notebook as markdown"
    exporter = MarkdownExporter()
    exporter.exclude_output = True
    text, _ = exporter.from_filename(str(INDEX))
    notebooks = {p.name for p in (ROOT / 'nbs').glob('*.ipynb')}
    for name in notebooks:
        text = text.replace(f']({name})', f'](nbs/{name})')
    text = text.replace('\n```\nimport ', '\n```python\nimport ')  # nbconvert knows no language of a notebook without one
    return text.replace('](../', '](').replace('src="../', 'src="').strip() + '\n'


if __name__ == '__main__':
    write_results()
    (ROOT / 'README.md').write_text(readme())
