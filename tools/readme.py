"README.md from nbs/index.ipynb: the same text and code, links seen from the top of the repository."
from pathlib import Path

from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent


def readme() -> str:
    "The index notebook as markdown"
    exporter = MarkdownExporter()
    exporter.exclude_output = True
    text, _ = exporter.from_filename(str(ROOT / 'nbs' / 'index.ipynb'))
    notebooks = {p.name for p in (ROOT / 'nbs').glob('*.ipynb')}
    for name in notebooks:
        text = text.replace(f']({name})', f'](nbs/{name})')
    return text.replace('](../', '](').replace('src="../', 'src="').strip() + '\n'


if __name__ == '__main__':
    (ROOT / 'README.md').write_text(readme())
