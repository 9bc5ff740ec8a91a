"""The pages of the site and their order, for mkdocs; nothing here names a single notebook, module or paper.

Addresses follow the repository (`nbs/03_cmae.html`, `paper_figures/cmae/table-1/table.html`), so that links that work on GitHub work here.
"""
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from book import api, explorers, formulas, links, notebooks, papers

ROOT = Path(__file__).parent.parent
chapters = [  # first names of the notebooks of a chapter, from one up to another
    ('Guides', '60', '70'), ('Foundations', '00', '01'), ('Methods', '01', '10'), ('Training', '10', '19'), ('Judging', '19', '30'),
    ('Papers', '30', '40'), ('Explorers', '40', '40a'), ('Explorers', '40f', '41'), ('Running', '40a', '45'), ("The authors' numbers", '45', '50'),
    ('Tables and figures', '50', '60'), ('More', '70', 'z')]
scratch = tempfile.TemporaryDirectory(prefix='mimrepro-site-')  # removed when the build ends


def chapter(stem: str) -> str:
    "The chapter of a notebook, by the number before its name"
    return next(title for title, first, end in chapters if first <= stem.split('_')[0] < end)


def by_chapter(stems: list[str]) -> dict[str, list[str]]:
    "Notebooks of each chapter that has any, in reading order"
    order = list(dict.fromkeys(title for title, *_ in chapters))
    found = {title: [stem for stem in sorted(stems) if chapter(stem) == title] for title in order}
    return {title: own for title, own in found.items() if own}


def page_links(text: str, titles: dict[str, str]) -> str:
    "Links to notebooks become links to pages, and a notebook that is named by its file is named by its title"
    text = re.sub(r'\[(\w+)\](?=\([\w./]*\1\.ipynb\))', lambda found: f'[{titles.get(found[1], found[1])}]', text)
    text = re.sub(r'(\.ipynb\)) (?=\[[^\]\n]+\]\([\w./]+\.ipynb\))', r'\1 · ', text)
    text = re.sub(r'\]\((?:nbs/|(\.\./)?(?:nbs/)?)index\.ipynb', lambda found: '](' + ('' if found[0].startswith('](nbs') else '../') + 'README.md', text)
    return re.sub(r'\]\(([\w./-]*)\.ipynb(#[^)\s]*)?\)', lambda found: f']({found[1]}.md{(found[2] or "").lower()})', text)


def contents(books: dict[str, notebooks.Notebook]) -> str:
    "The table of contents: every chapter with its notebooks and what they are about"
    parts = ['# Contents', 'The chapters build on each other; a guide can be read on its own.']
    for title, stems in by_chapter(list(books)).items():
        parts += [f'## {title}', '\n'.join(f'- [{books[stem].title}](nbs/{stem}.md): {books[stem].summary}' for stem in stems)]
    return '\n\n'.join(parts) + '\n'


def api_index(books: dict[str, notebooks.Notebook]) -> str:
    "Every module, by the chapter that explains it"
    parts = ['# Modules', 'What can be imported. Each page is made from the signatures and the comments of the module itself, and leads to the notebook that explains it.']
    for title, stems in by_chapter([stem for stem, book in books.items() if book.module]).items():
        parts += [f'## {title}', '\n'.join(f'- [`{books[stem].module}`]({books[stem].module}.md): {books[stem].title}' for stem in stems)]
    return '\n\n'.join(parts) + '\n'


class Site:
    "The files of the site, as they are gathered"
    def __init__(self, files: Files, config):
        self.files, self.config = files, config
        self.books = {path.stem: notebooks.Notebook(path) for path in sorted((ROOT / 'nbs').glob('*.ipynb')) if path.stem != 'index'}
        self.titles = {stem: book.title for stem, book in self.books.items()}

    def add(self, uri: str, content: str | bytes, boost: float = 1):
        "A page or another file that is made here; a page that matters more is found first"
        if uri.endswith('.md'):
            content = f'---\nsearch:\n  boost: {boost}\n---\n\n{page_links(content, self.titles)}'
        self.files.append(File.generated(self.config, uri, content=content))

    def copy(self, path: Path, uri: str | None = None):
        "A file as it is"
        self.files.append(File.generated(self.config, uri or str(path.relative_to(ROOT)), abs_src_path=str(path)))

    def add_notebooks(self):
        "Every notebook with its pictures, its explorers, and itself to take along"
        sources = [source for book in self.books.values() for kind, source, _ in book.cells if kind == 'markdown']
        try:
            made = explorers.build_all(sources, Path(scratch.name))
        except ValueError as error:
            raise PluginError(str(error)) from None
        for path in made:
            self.copy(path, f'explorers/{path.name}')
        for stem, book in self.books.items():
            of_module = f'[`{book.module}`](../api/{book.module}.md), marked cells are its source · ' if book.module else ''
            about = f'{chapter(stem)} · {of_module}<a href="{stem}.ipynb" download>notebook</a>\n{{ .about }}'
            text, pictures = notebooks.page(book, about)
            self.add(f'nbs/{stem}.md', explorers.framed(text, '../explorers'), boost=5 if chapter(stem) in ('Methods', 'Guides') else 2)
            self.copy(book.path)
            for name, picture in pictures.items():
                self.add(f'nbs/{name}', picture)

    def add_modules(self):
        "A page for every module"
        where = {}
        for book in self.books.values():
            where[book.module] = where.get(book.module, {}) | notebooks.places(book)
        for stem, book in self.books.items():
            if book.module:
                self.add(f'api/{book.module}.md', api.page(book.module, where[book.module], (f'../nbs/{stem}.md', book.title)))
        self.add('api/README.md', api_index(self.books))

    def add_results(self) -> list:
        "Every page of `paper_figures`, one for each paper that has none of its own, and their order"
        folder = ROOT / 'paper_figures'
        for path in sorted(p for p in folder.rglob('*') if p.is_file() and p.suffix != '.jsonl'):
            if path.suffix == '.md':
                self.add(str(path.relative_to(ROOT)), path.read_text(encoding='utf-8'), boost=.5)
            else:
                self.copy(path)
        ledger, order = papers.papers((folder / 'README.md').read_text(encoding='utf-8')), []
        for paper in ledger:
            names = {book.module: book.title for book in self.books.values()}
            name = names.get(f'mimrepro.{paper.key}', names.get(f'mimrepro.items.{paper.key}', paper.key))
            drawn = [(f'../../nbs/{stem}.md', book.title) for stem, book in self.books.items() if book.module.split('_')[0] == f'mimrepro.items.{paper.key}']
            self.add(f'paper_figures/{paper.key}/README.md', papers.page(paper, name, folder / paper.key, drawn))
            order.append({name: [f'paper_figures/{paper.key}/README.md', *({title: f'paper_figures/{paper.key}/{page}'} for page, title in papers.titles(paper).items())]})
        rest = [str(path.relative_to(ROOT)) for path in sorted(folder.rglob('*.md'))]
        known = str(order)
        return [{'Which claims hold': 'paper_figures/README.md'}, *order, {'Speed and cost': [page for page in rest if page != 'paper_figures/README.md' and page not in known]}]


def on_files(files, config):
    "Gather the pages and say their order"
    site = Site(files, config)
    site.add('README.md', (ROOT / 'README.md').read_text(encoding='utf-8'), boost=2)
    for name in ('CONTRIBUTING.md', 'CHANGELOG.md'):
        site.add(name, (ROOT / name).read_text(encoding='utf-8'))
    for name in ('CITATION.cff', 'LICENSE'):
        site.copy(ROOT / name)
    site.copy(Path(find_spec('ziamath').origin).parent / 'fonts' / 'STIXTwoMath-Regular.ttf', 'STIXTwoMath-Regular.ttf')  # formulas look the same everywhere
    site.add('contents.md', contents(site.books))
    site.add_notebooks()
    site.add_modules()
    results = site.add_results()
    book = {title: [f'nbs/{stem}.md' for stem in stems] for title, stems in by_chapter(list(site.books)).items()}
    modules = by_chapter([stem for stem, found in site.books.items() if found.module])
    config['nav'] = [
        {'Start': ['README.md', 'contents.md', 'CONTRIBUTING.md', 'CHANGELOG.md']}, *([{'Guides': book.pop('Guides')}] if 'Guides' in book else []),
        {'Book': [{title: pages} for title, pages in book.items()]}, {'Results': results},
        {'Modules': ['api/README.md', *({title: [{site.books[s].module.removeprefix('mimrepro.'): f'api/{site.books[s].module}.md'} for s in stems]} for title, stems in modules.items())]}]
    return files


def on_page_content(html, page, config, files):
    "Formulas as MathML"
    try:
        return formulas.drawn(html)
    except ValueError as error:
        raise PluginError(f'{page.file.src_uri}: {error}') from None


def on_post_build(config):
    "Refuse a site with a broken link"
    if found := links.faults(Path(config['site_dir'])):
        raise PluginError(f'{len(found)} faults of links:\n  ' + '\n  '.join(found))
