"The site: how notebooks, modules, papers and explorers become pages; and, slowly, the whole of it in a browser"
import functools
import json
import resource
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
pytest.importorskip('material', reason='the site needs pip install "mimrepro[docs]"')
pytest.importorskip('latex2mathml', reason='the site needs pip install "mimrepro[docs]"')

import book_hook  # noqa: E402
from book import api, explorers, formulas, links, notebooks, papers  # noqa: E402

PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='


def notebook(folder: Path, *cells, name: str = '03_toy.ipynb') -> notebooks.Notebook:
    "A notebook of cells given as text for Markdown and (source, outputs) for code"
    made = [dict(cell_type='markdown', source=[cell]) if isinstance(cell, str) else dict(cell_type='code', source=[cell[0]], outputs=list(cell[1:])) for cell in cells]
    (folder / name).write_text(json.dumps(dict(cells=made)))
    return notebooks.Notebook(folder / name)


@pytest.fixture
def toy(tmp_path):
    return notebook(tmp_path, '# A toy\n\n> What it is for', ('#| default_exp toys',), ('#| hide\nsecret = 1',), '## Some *part*\n$$ a\n+ b $$\n\nText\n- one\n  - two\n```\n# no heading\n- a\n```',
                    ('#| export\n@patch\ndef play(self: Toy | Game): pass\n\nSIZE, DEPTH = 1, 2', dict(name='stdout', text=['\x1b[31mred\x1b[0m\n'])),
                    '## Some part', ('#| export\nclass Toy: pass', dict(data={'image/png': PIXEL, 'text/plain': ['<Figure>']}), dict(data={'text/markdown': ['# Big\n\n[b](c/d.md)\n\n| a |\n| --- |']})))


def test_a_notebook_becomes_a_page(toy):
    text, pictures = notebooks.page(toy, 'about it')
    assert (toy.title, toy.summary, toy.module) == ('A toy', 'What it is for', 'mimrepro.toys')
    assert text.startswith('# A toy\n\nabout it\n')
    assert 'secret' not in text and '#|' not in text
    assert '``` { .python data-search-exclude=1 .exported }\n@patch\n' in text and '``` { .text .output data-search-exclude=1 }\nred\n```' in text
    assert '$$ a\n+ b $$' in text and 'Text\n\n- one\n    - two\n```\n# no heading\n- a\n```' in text
    assert '### Big\n\nb\n' in text and '\n# Big' not in text
    assert list(pictures) == ['03_toy_files/6-0.png'] and pictures['03_toy_files/6-0.png'].startswith(b'\x89PNG')
    assert '![Output of the section Some part](03_toy_files/6-0.png)' in text


def test_names_lead_to_their_section(toy):
    assert notebooks.places(toy) == {**dict.fromkeys(['Toy.play', 'Game.play', 'SIZE', 'DEPTH'], ('some-part', 'Some part')), 'Toy': ('some-part_1', 'Some part')}


def test_a_fence_holds_fences():
    assert notebooks.fenced('a ``` b', '.text').startswith('```` { .text }\n')


def test_a_new_notebook_finds_its_chapter():
    stems = [path.stem for path in (ROOT / 'nbs').glob('*.ipynb') if path.stem != 'index']
    found = book_hook.by_chapter([*stems, '06_sixth', '60_own_images'])
    assert sorted(stem for own in found.values() for stem in own) == sorted([*stems, '06_sixth', '60_own_images'])
    assert found['Methods'][-1] == '06_sixth' and list(found)[0] == 'Guides' and '60_own_images' in found['Guides']
    assert [book_hook.chapter(stem) for stem in ('40_explore', '40a_reproduce', '40f_masks', '41d_explore')] == ['Explorers', 'Running', 'Explorers', 'Running']


def test_links_to_notebooks_become_links_to_pages():
    titles = {'01_mae': 'MAE', '03_cmae': 'CMAE'}
    change = functools.partial(book_hook.page_links, titles=titles)
    assert change('[01_mae](nbs/01_mae.ipynb) [03_cmae](nbs/03_cmae.ipynb)') == '[MAE](nbs/01_mae.md) · [CMAE](nbs/03_cmae.md)'
    assert change('[here](03_cmae.ipynb#Two-windows)') == '[here](03_cmae.md#two-windows)'
    assert change('[start](index.ipynb)') == '[start](../README.md)' and change('[start](nbs/index.ipynb)') == '[start](README.md)'


@pytest.mark.parametrize('formula', [r'\(a_i\)', r'\[\begin{cases} \mathrm{peak} &amp; t&lt;1 \\ 0 \end{cases}\]', r'\(\Big\lfloor N\Big\rfloor\)'])
def test_formulas_are_drawn_without_a_script(formula):
    drawn = formulas.drawn(f'<p><span class="arithmatex">{formula}</span></p>')
    assert '<math' in drawn and 'arithmatex' not in drawn and '\\' not in drawn
    assert ('display="block"' in drawn) == formula.startswith(r'\[')


def test_letters_of_other_alphabets_are_characters():
    assert '<mi>ℝ</mi>' in formulas.mathml(r'\mathbb R^N', False) and '<mi>ℒ</mi>' in formulas.mathml(r'\mathcal L', False)


def test_bars_are_as_high_as_in_tex():
    assert '<mo stretchy="false">' in formulas.mathml(r'\lVert x\rVert', False)


def test_an_unknown_formula_stops_the_build():
    with pytest.raises(ValueError, match='no MathML'):
        formulas.mathml(r'\nosuchword', False)


def test_a_marker_becomes_a_frame():
    text = explorers.framed('before\n<!-- explorer: masks --method localmim -->\nafter', '../explorers')
    assert 'src="../explorers/masks-method-localmim.html"' in text and text.startswith('before\n') and '<!--' not in text


def test_explorers_are_built_once_and_failures_stop_the_build(tmp_path, monkeypatch, capsys):
    def stand_in(words):
        if 'bad' in words:
            raise RuntimeError('no such method')
        with open(words[-1], 'x') as page:
            page.write(' '.join(words[:-1]))

    monkeypatch.setattr(explorers, 'main', stand_in)
    made = explorers.build_all(['<!-- explorer: masks -->', 'x\n<!-- explorer: masks -->\n<!-- explorer: attention runs/a -->'], tmp_path)
    assert [path.name for path in made] == ['attention-runs-a.html', 'masks.html'] and made[1].read_text() == 'explore masks --out'
    assert 'explorer masks.html: 0 kB' in capsys.readouterr().out
    with pytest.raises(ValueError, match='(?s)mimrepro explore masks --method bad.*no such method'):
        explorers.build_all(['<!-- explorer: masks --method bad -->'], tmp_path)


def test_a_wrong_command_stops_the_build(tmp_path):
    with pytest.raises(ValueError, match='(?s)mimrepro explore no-such-explorer` made no page'):
        explorers.build_all(['<!-- explorer: no-such-explorer -->'], tmp_path)


def test_a_module_has_a_page():
    where = notebooks.places(notebooks.Notebook(ROOT / 'nbs' / '03_cmae.ipynb'))
    text = api.page('mimrepro.cmae', where, ('../nbs/03_cmae.md', 'CMAE'))
    assert '## window { #window }' in text and 'window(x, corner, sides) -> Tensor' in text
    assert '| `corner` | `Tensor` |  | int64 `B 2`: top and left, for each image |' in text
    assert '| `shift` | `int` | `31` | largest distance of the two windows, in pixels |' in text
    assert '### CMAE.draw { #CMAE.draw }' in text and 'Explained in [What is drawn](../nbs/03_cmae.md#what-is-drawn)' in text
    assert '| `presets` | `tiny`, `small`, `base`, `large` |' in text
    recipe = api.described('Recipe', __import__('mimrepro.method', fromlist=['Recipe']).Recipe)
    assert 'Recipe(\n    name, method, model=dict(), ' in recipe and '| `epochs` | `int` |' in recipe


def test_every_public_name_of_a_notebook_is_placed():
    book = notebooks.Notebook(ROOT / 'nbs' / '00b_masking.ipynb')
    import mimrepro.masking
    assert set(mimrepro.masking.__all__) <= set(notebooks.places(book))


def test_a_paper_has_a_page(tmp_path):
    ledger = ('# Which claims hold\n\n## toy\n\nA title. 2 of 2.\n\n| item | claim | demo |\n| --- | --- | --- |\n'
              '| [table-1](toy/table-1/table.md): Depth | More is better | holds |\n| [table-1b](toy/table-1b/table.md): Depth | no claim | not run |\n')
    (tmp_path / 'table-1').mkdir()
    (tmp_path / 'table-1' / 'figure.svg').write_text('<svg/>')
    paper, = papers.papers(ledger)
    assert papers.titles(paper) == {'table-1/table.md': 'Depth (table-1)', 'table-1b/table.md': 'Depth (table-1b)'}
    text = papers.page(paper, 'Toy', tmp_path, [('../../nbs/50_toy.md', 'Toy tables')])
    assert '| [table-1](table-1/table.md): Depth | More is better | holds |' in text and '[Toy tables](../../nbs/50_toy.md)' in text
    assert '](table-1/figure.svg)' in text and '](table-1b/figure.svg)' not in text


def test_broken_links_are_found(tmp_path):
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'index.html').write_text('<h1 id="top">x</h1><a href="nbs/a.html#here">ok</a><a href="#top">ok</a><a href="https://elsewhere.org">ok</a><a href="/nbs/a.html">ok</a>')
    (tmp_path / 'nbs' / 'a.html').write_text('<p id="here"><a href="../index.html#gone">x</a><img src="no.png"><script src="https://cdn.org/x.js"></script><a href="../../secret">x</a>')
    (tmp_path / 'a.css').write_text('@font-face { src: url("https://fonts.org/a") }')
    assert links.faults(tmp_path) == ['nbs/a.html: ../../secret leads nowhere', 'nbs/a.html: ../index.html#gone names no place on its page', 'nbs/a.html: no.png leads nowhere',
                                      'nbs/a.html: asks the network for https://cdn.org/x.js', 'a.css: asks the network for https://fonts.org/a']


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The whole site, built as `make docs` builds it"
    folder, start = tmp_path_factory.mktemp('site'), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '-q', '-f', 'mkdocs.yml', '-d', str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 240, 'the site takes too long: less than five minutes are promised'
    return folder


@pytest.fixture(scope='module')
def server(site):
    "Its address on this machine"
    class Quiet(SimpleHTTPRequestHandler):
        log_message = lambda *_: None

    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_address[1]}'
        running.shutdown()


@pytest.fixture
def tab(browser):
    "A page that remembers its errors and what it asked of others than us"
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.outside, page.errors = [], []
    page.on('request', lambda request: page.outside.append(request.url) if not request.url.startswith(('http://127.0.0.1', 'file:', 'data:', 'blob:', 'about:')) else None)
    page.on('pageerror', lambda error: page.errors.append(str(error)))
    yield page
    page.close()


def find(tab, words: str) -> list[str]:
    "Addresses that the search of the open page finds"
    tab.locator('.md-search__input').first.press_sequentially(words)
    tab.wait_for_selector('.md-search-result__item a')
    return tab.eval_on_selector_all('.md-search-result__item > a', 'links => links.map(link => link.href)')


@pytest.mark.slow
@pytest.mark.browser
def test_every_notebook_is_a_page_with_its_pictures(site, server, tab):
    for path in sorted((ROOT / 'nbs').glob('*.ipynb')):
        stem = path.stem
        if stem == 'index':
            continue
        tab.goto(f'{server}/nbs/{stem}.html')
        stored = sum(any(kind.startswith('image/') for kind in out.get('data', {})) for cell in json.loads(path.read_text())['cells']
                     if cell['cell_type'] == 'code' and '#| hide' not in ''.join(cell['source']) for out in cell['outputs'])
        shown = tab.eval_on_selector_all('article img.output', 'pictures => pictures.map(p => p.complete && p.naturalWidth > 0)')
        assert len(shown) == stored and all(shown), f'{stem} shows {sum(shown)} of {stored} pictures'
        assert '$' not in ''.join(tab.locator('article p, article li').all_inner_texts()), f'{stem} shows a formula as text'
    assert not tab.outside and not tab.errors


@pytest.mark.slow
@pytest.mark.browser
def test_explorers_answer_in_the_site(server, tab, tmp_path):
    from playwright.sync_api import expect
    named = {path.stem: explorers.marker.findall(''.join(source for kind, source, _ in notebooks.Notebook(path).cells if kind == 'markdown')) for path in (ROOT / 'nbs').glob('*.ipynb')}
    for stem, found in sorted(named.items()):
        if not found:
            continue
        tab.goto(f'{server}/nbs/{stem}.html')
        assert tab.locator('iframe.explorer').count() == len(found)
        for number in range(len(found)):
            frame = tab.locator('iframe.explorer').nth(number)
            frame.scroll_into_view_if_needed()
            inside = frame.content_frame
            handle, status = inside.locator('[tabindex="0"]').first, inside.locator('[aria-live]').first
            before = status.inner_text()
            handle.press('ArrowRight')
            handle.press('ArrowDown')
            expect(status).not_to_have_text(before)
            shown, page = frame.bounding_box(), inside.locator('html').evaluate('page => [page.scrollWidth, page.clientWidth, page.scrollHeight]')
            assert page[0] <= page[1] and page[2] <= shown['height'], f'{found[number]} in {stem} does not fit its frame'
            tab.screenshot(path=tmp_path / f'{stem}-{number}.png')
    assert not tab.outside and not tab.errors


@pytest.mark.slow
@pytest.mark.browser
def test_search_finds_cmae(site, server, tab, tmp_path):
    for start in (f'{server}/index.html', f'{server}/nbs/00_show.html', (site / 'index.html').as_uri()):
        tab.goto(start)
        found = find(tab, 'pixel shift')
        assert 'cmae' in found[0], found[:5]
        assert any('/nbs/03_cmae.html' in address for address in found[:5]), found[:5]
        tab.screenshot(path=tmp_path / 'search.png')
        tab.locator('.md-search-result__item > a').first.click()
        tab.wait_for_url('**cmae**')
    assert not tab.outside and not tab.errors


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (1280, 'dark'), (390, 'light')])
def test_pages_fit_the_window(server, browser, tmp_path, width, scheme):
    context = browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme)
    for name in ('index', 'contents', 'nbs/03_cmae', 'api/mimrepro.cmae', 'paper_figures/index', 'paper_figures/cmae/index', 'paper_figures/performance/index'):
        tab = context.new_page()
        tab.goto(f'{server}/{name}.html')
        assert tab.evaluate('document.documentElement.scrollWidth') <= width, f'{name} is wider than {width} pixels'
        tab.screenshot(path=tmp_path / f'{name.replace("/", "-")}-{width}-{scheme}.png')
        tab.close()
    context.close()
