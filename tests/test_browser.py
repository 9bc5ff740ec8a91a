"Explorers in a real browser: as a page without a kernel, and in JupyterLab with one"
import re
from pathlib import Path

import pytest
import torch
from browsing import check_hover, in_kernel

from mimrepro.explorers.attention import explore_attention
from mimrepro.explorers.host import encode_image, read_image, script
from mimrepro.explorers.masks import explore_masks, masks_of
from mimrepro.extrema import ExtremaEncoder
from mimrepro.swin import SwinEncoder
from mimrepro.vit import Encoder

pytestmark = pytest.mark.browser

DOTS = '''
async function render({ model, el }) {
  const watch = watcher(model), picture = await bitmap(model.get("image"));
  const view = panel({ title: "Point at a patch", lattice: [8, 8], width: 256, focusable: true });
  const status = element("p", { className: "status", role: "status" });
  const draw = () => {
    const patch = model.get("patch");
    view.show({ image: picture, smooth: true, marks: [{ row: Math.floor(patch / 8), column: patch % 8, stroke: palette.orange }] });
    status.textContent = `patch ${patch}`;
  };
  const double = async () => {
    const found = await ask(model, { number: model.get("patch") }, [new Uint8Array(3)]);
    status.textContent = found ? `doubled ${found.answer.doubled}, ${found.answer.size} bytes, ${found.buffers[0].byteLength} back` : "no kernel";
  };
  gridCursor(view, { move: (patch) => set(model, { patch }), press: double });
  watch(["patch"], soon(draw));
  el.classList.add("mim");
  el.dataset.lmSuppressShortcuts = "true";
  el.replaceChildren(view.root, status, toolbar(model, watch, { panels: () => [view], name: "dots" }));
  draw();
  return watch.stop;
}
'''
SMALL = f'''
import pathlib, tempfile, traitlets
from mimrepro.explorers.host import Explorer, encode_image, read_image
path = pathlib.Path(tempfile.mkdtemp()) / 'dots.js'
path.write_text({DOTS!r})
class Dots(Explorer):
    scripts, title = (path,), 'Dots'
    patch = traitlets.Int(27).tag(sync=True, state=True)
    def answer(self, question, buffers):
        return dict(doubled=2 * question['number'], size=len(buffers[0])), [b'ab']
dots = Dots(call='some.module.Dots', given=["image='flower'"], image=encode_image(read_image('flower', (128, 128))))
'''


def check_dots(tab, answer: str):
    "Keyboard, mouse and question of the small explorer"
    canvas, status = tab.locator('.mim canvas'), tab.locator('.mim .status')
    canvas.focus()
    tab.keyboard.press('ArrowRight')
    status.get_by_text('patch 1', exact=True).wait_for()
    tab.keyboard.press('ArrowDown')
    tab.keyboard.press('End')
    status.get_by_text('patch 15', exact=True).wait_for()
    tab.keyboard.press('Enter')
    status.get_by_text(answer, exact=True).wait_for()
    canvas.hover(position=dict(x=100, y=60))
    status.get_by_text('patch 11', exact=True).wait_for()
    assert canvas.get_attribute('aria-label') == 'Point at a patch'


def test_a_page_answers_without_a_kernel(open_page, shot):
    scope = {}
    exec(SMALL, scope)
    tab = open_page(scope['dots'], '#patch=5')
    tab.locator('.mim .status').get_by_text('patch 5', exact=True).wait_for()
    check_dots(tab, 'no kernel')
    tab.get_by_role('button', name='Copy link').click()
    assert tab.url.endswith('#patch=11') and tab.evaluate('navigator.clipboard.readText()').endswith('#patch=11')
    tab.get_by_role('button', name='Copy call').click()
    assert tab.evaluate('navigator.clipboard.readText()') == "from some.module import Dots\n\nDots(image='flower', patch=11)"
    with tab.expect_download() as png:
        tab.get_by_role('button', name='PNG').click()
    assert Path(png.value.path()).read_bytes().startswith(b'\x89PNG')
    with tab.expect_download() as svg:
        tab.get_by_role('button', name='SVG').click()
    text = Path(svg.value.path()).read_text()
    assert text.startswith('<svg') and 'Point at a patch' in text and '<rect' in text and 'data:image/png' in text
    shot(tab, 'dots-light')
    shot(tab, 'dots-dark', dark=True)


def test_a_widget_answers_with_a_kernel(open_notebook, shot):
    tab = open_notebook(SMALL, 'dots', '0')
    check_dots(tab, 'doubled 30, 3 bytes, 2 back')
    assert in_kernel(tab, 'dots.patch') == '11'
    shot(tab, 'dots-lab')


CASES = [(sampler, side, ratio, masks) for sampler, ratios, counts in [
    ('random', (0., .4, .75, .9), (1,)), ('block', (.3, .5, .75), (1,)), ('grid', (.75,), (1,)), ('cells', (.5, .65, .75), (1,)),
    ('units', (.5, .75), (1,)), ('disjoint', (.8, .9), (2, 5)), ('independent', (.3, .8), (1, 3))]
    for side in (14, 16) for ratio in ratios for masks in counts]


def test_the_script_draws_the_masks_of_the_package(tab):
    "Same seed, same sampler, same mask, in JavaScript and in Python"
    tab.set_content(f'<script>{script("samplers.js")}; window.draw = (name, seed, o) => samplers[name](generator(seed), o).map((mask) => [...mask])</script>')
    for sampler, side, ratio, masks in CASES:
        seeds = range(40) if sampler == 'block' else range(8)
        theirs = tab.evaluate('([name, seeds, o]) => seeds.map((seed) => draw(name, seed, o))', [sampler, [*seeds], dict(rows=side, columns=side, ratio=ratio, masks=masks)])
        ours = [masks_of(sampler, (side, side), ratio, seed, masks).int().tolist() for seed in seeds]
        assert theirs == ours, (sampler, side, ratio, masks)
    numbers = tab.evaluate('(() => { const rand = generator(2026); return Array.from({length: 2000}, rand) })()')
    assert numbers == torch.rand(2000, generator=torch.Generator().manual_seed(2026)).tolist()
    for sampler, ratio, masks in [('grid', .6, 1), ('disjoint', .5, 5), ('random', .999, 1), ('units', .999, 1)]:
        with pytest.raises(ValueError):
            masks_of(sampler, (14, 14), ratio, 0, masks)
        with pytest.raises(Exception, match='none visible|disjoint|lattice|units'):
            tab.evaluate('([name, o]) => draw(name, 0, o)', [sampler, dict(rows=14, columns=14, ratio=ratio, masks=masks)])


def choose_in(tab, label: str, text: str):
    "Choose an option of a labelled list"
    tab.get_by_label(label, exact=True).select_option(label=text)


def test_masks_as_a_page(open_page, shot, tmp_path):
    tab = open_page(explore_masks('mae', image='flower'))
    status = tab.locator('.mim .status')
    assert '147 of 196 patches hidden.' in status.inner_text()
    main = tab.locator('.mim canvas').first
    main.focus()
    tab.keyboard.press('ArrowRight')
    before = status.inner_text()
    tab.keyboard.press('Enter')
    status.get_by_text('1 changed by hand').wait_for()
    assert ('is visible' in before) != ('is visible' in status.inner_text())
    box = main.bounding_box()
    tab.mouse.move(box['x'] + 40, box['y'] + 200)
    tab.mouse.down()
    for x in range(40, 360, 20):
        tab.mouse.move(box['x'] + x, box['y'] + 200)
    tab.mouse.up()
    assert int(re.search(r'(\d+) changed by hand', status.inner_text())[1]) >= 4
    shot(tab, 'masks-mae-light')
    tab.get_by_role('button', name='Undo edits').click()
    status.get_by_text('147 of 196 patches hidden.').wait_for()
    for method in ('ExtreMA', 'CMAE', 'LocalMIM, Swin', 'LC-MAE'):
        choose_in(tab, 'Method', method)
        tab.wait_for_timeout(150)
        shot(tab, f'masks-{method.lower().replace(", ", "-")}-light')
    shot(tab, 'masks-lc-mae-dark', dark=True)
    tab.set_viewport_size(dict(width=390, height=800))
    shot(tab, 'masks-narrow')
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390
    tab.set_viewport_size(dict(width=1240, height=900))
    choose_in(tab, 'Method', 'ExtreMA')
    tab.get_by_label('Hidden').fill('0.5')
    status.get_by_text('5 disjoint masks').wait_for()
    shot(tab, 'masks-problem')
    tab.get_by_label('Hidden').fill('0.9')
    tab.get_by_label('Seed').fill('3')
    status.get_by_text('177 of 196').wait_for()
    state = dict(part.split('=') for part in tab.evaluate('(document.querySelector("code").textContent.match(/\\((.*)\\)/)[1]).split(", ")'))
    assert (state['ratio'], state['seed'], state['method'], state['masks']) == ('0.9', '3', "'extrema'", '5')
    (tmp_path / 'my temple.png').write_bytes(encode_image(read_image('temple', (100, 160))))
    tab.get_by_label('Your image').set_input_files(tmp_path / 'my temple.png')
    status.get_by_text('Your image is shown as it is').wait_for()
    assert "image='my temple.png'" in tab.locator('.mim code').text_content()
    shot(tab, 'masks-own-image')


def test_masks_with_a_kernel(open_notebook, shot):
    tab = open_notebook("from mimrepro.explorers.masks import explore_masks\nmasks = explore_masks('cmae', image='temple', seed=40)", 'masks', '0')
    status = tab.locator('.mim .status')
    status.get_by_text('128 of 196 patches hidden.').wait_for()
    main = tab.locator('.mim canvas').first
    main.focus()
    for key in ('ArrowDown', 'ArrowDown', 'Space'):
        tab.keyboard.press(key)
    status.get_by_text('1 changed by hand').wait_for()
    assert in_kernel(tab, 'masks.flipped, masks.seed') == '[28] 40'
    assert in_kernel(tab, 'masks.drawn().sum().item() in (127, 129)') == 'True'
    shot(tab, 'masks-lab')


@pytest.fixture(scope='module')
def encoders():
    "Of the width, heads and patches of a ViT-B, but few blocks and no training; and a small Swin"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(224, 16, 3, 768, 3, 12), ExtremaEncoder(224, 16, 3, 768, 1, 12), SwinEncoder(64, 4, 3, 24, (2, 2), (2, 4), 4)


def test_attention_as_a_page(encoders, open_page, shot):
    vit, extrema, _ = encoders
    tab = open_page(explore_attention(vit, extrema, image='temple', block=0))
    status = tab.locator('.mim .status')
    assert status.inner_text() == 'Patch in row 8, column 8, block 1.'
    check_hover(tab, '.mim canvas', '196 patches, 12 heads, two models, no kernel')
    tab.locator('.mim canvas').first.focus()
    tab.keyboard.press('Home')
    status.get_by_text('column 1,').wait_for()
    shot(tab, 'attention-light')
    tab.set_viewport_size(dict(width=390, height=800))
    shot(tab, 'attention-narrow')
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390
    tab.set_viewport_size(dict(width=1240, height=900))
    shot(tab, 'attention-dark', dark=True)
    tab.get_by_label('over the image').check()
    tab.get_by_label('hide 75 % of the patches').check()  # the query moves to a patch that is seen
    status.get_by_text('row 12, column 2,').wait_for()
    shot(tab, 'attention-masked')
    choose_in(tab, 'Block', 'block 3 / class 2')
    status.get_by_text('Here only the class token asks (ExtremaEncoder)').wait_for()
    colours = tab.locator('canvas[aria-label="ExtremaEncoder: head 1"]').evaluate('c => new Set(new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer)).size')
    assert colours > 20, 'its map is drawn whatever patch is pointed at'
    tab.get_by_label('ask the class token').check()
    status.get_by_text('The class token').wait_for()
    shot(tab, 'attention-class')
    with tab.expect_download() as svg:
        tab.get_by_role('button', name='SVG').click()
    assert Path(svg.value.path()).read_text().count('<image') > 26


def test_windows_as_a_page(encoders, open_page, shot):
    tab = open_page(explore_attention(encoders[2], image='flower', block=1, overlay=True))
    tab.locator('.mim canvas').first.hover(position=dict(x=60, y=60))
    tab.locator('.mim .status').get_by_text('row 4, column 4, block 2').wait_for()
    assert not tab.get_by_label('hide 75 % of the patches').count()
    shot(tab, 'attention-windows')


def test_attention_with_a_kernel(open_notebook, shot):
    tab = open_notebook('''import torch
from mimrepro.explorers.attention import explore_attention
from mimrepro.vit import Encoder
heads = explore_attention(Encoder(224, 16, 3, 768, 2, 12), image='flower', block=1)''', 'heads', '0', theme='JupyterLab Dark')
    tab.locator('.mim .status').get_by_text('row 8, column 8, block 2').wait_for()
    check_hover(tab, '.mim canvas', '196 patches, 12 heads, in JupyterLab')
    choose_in(tab, 'Block', 'block 1')
    tab.get_by_label('Share').fill('0.5')
    tab.get_by_label('hide patches').check()
    tab.wait_for_function("!document.querySelector('.mim .status').textContent.includes('hidden')")
    shot(tab, 'attention-lab-dark')
    tab.locator('.mim canvas').first.focus()
    tab.keyboard.press('Home')
    tab.locator('.mim .status').get_by_text('column 1').wait_for()
    assert in_kernel(tab, 'heads.block, heads.masked, heads.query % 14, len(heads.hidden)') == '0 True 0 98'
    assert in_kernel(tab, 'sorted(heads.known)') == '[(0,), (0, 0.5, 0)]'
