"Explorers in a real browser: as a page without a kernel, and in JupyterLab with one"
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from shutil import which

import pytest

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
CHROMIUM = os.environ.get('MIMREPRO_CHROMIUM') or which('chromium') or which('chromium-browser') or which('google-chrome')
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason='no chromium found: install it, or set MIMREPRO_CHROMIUM')]

ROOT = Path(__file__).parent.parent
ALLOWED = ('file:', 'data:', 'blob:', 'about:', 'http://127.0.0.1', 'ws://127.0.0.1')


@pytest.fixture(scope='session')
def browser():
    "Debian's chromium, without a window"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    "A fresh tab that, at the end, must have had no error and asked nobody outside for anything"
    context = browser.new_context(viewport=dict(width=1240, height=900), accept_downloads=True, permissions=['clipboard-read', 'clipboard-write'])
    page, errors, outside = context.new_page(), [], []
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.on('console', lambda message: errors.append(message.text) if message.type == 'error' and 'WebSocket' not in message.text else None)  # JupyterLab connects again by itself
    page.on('request', lambda request: outside.append(request.url) if not request.url.startswith(ALLOWED) else None)
    page.set_default_timeout(30_000)
    yield page
    context.close()
    assert not errors and not outside, (errors, outside)


@pytest.fixture
def shot(tmp_path, request):
    "Save a screenshot as NAME.png in the folder MIMREPRO_SHOTS, or in the test's own"
    folder = Path(os.environ.get('MIMREPRO_SHOTS') or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def save(page, name: str, dark: bool = False):
        page.emulate_media(color_scheme='dark' if dark else 'light')
        page.screenshot(path=folder / f'{name}.png', full_page=True)
        page.emulate_media(color_scheme='light')
    return save


@pytest.fixture
def open_page(tab, tmp_path):
    "Write an explorer's page, open it by file://, wait until it is drawn"
    def opened(explorer, address: str = ''):
        path = tmp_path / 'page.html'
        path.write_text(explorer.to_html())
        tab.goto(f'file://{path}{address}')
        tab.wait_for_selector('.mim canvas')
        return tab
    return opened


@pytest.fixture(scope='session')
def jupyter(tmp_path_factory):
    "A JupyterLab server: its address and the folder it shows"
    folder = tmp_path_factory.mktemp('lab')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    settings = dict(IdentityProvider=dict(token=''), ServerApp=dict(password='', disable_check_xsrf=True))
    (folder / 'jupyter_server_config.json').write_text(json.dumps(settings))
    environment = os.environ | {'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}', 'OMP_NUM_THREADS': '1', 'JUPYTER_CONFIG_DIR': str(folder), 'JUPYTERLAB_SETTINGS_DIR': str(folder / 'settings')}
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', f'--notebook-dir={folder}', '--ServerApp.port_retries=0']
    address = f'http://127.0.0.1:{port}'
    with open(folder / 'server.log', 'w') as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            wait_for(f'{address}/api/status', server, folder / 'server.log')
            yield address, folder
        finally:
            server.terminate()
            server.wait(20)


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 60):
    "Return once a server answers"
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=2).read()
        except OSError:
            time.sleep(.2)
    raise RuntimeError(f'no server at {address}:\n{log.read_text()[-2000:]}')


def choose(folder: Path, plugin: str, **settings):
    "Settings of JupyterLab, by its own files"
    path = folder / 'settings' / '@jupyterlab' / f'{plugin}.jupyterlab-settings'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


@pytest.fixture
def open_notebook(tab, jupyter, shot):
    "Make a notebook of some cells, open it in JupyterLab, run it all, wait until an explorer is drawn"
    def opened(*cells: str, theme: str = 'JupyterLab Light'):
        address, folder = jupyter
        choose(folder, 'apputils-extension/themes', theme=theme)
        choose(folder, 'apputils-extension/notification', fetchNews='false', checkForUpdates=False)
        choose(folder, 'notebook-extension/tracker', autoStartDefaultKernel=True)
        cell = lambda i, source: dict(cell_type='code', id=f'cell{i}', source=source, metadata={}, outputs=[], execution_count=None)
        kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
        (folder / 'small.ipynb').write_text(json.dumps(dict(cells=[cell(i, s) for i, s in enumerate(cells)], metadata=kernel, nbformat=4, nbformat_minor=5)))
        tab.goto(f'{address}/doc/tree/small.ipynb?reset')
        tab.get_by_text('| Idle').wait_for()
        for _ in range(5):  # a server that is busy forgets what it was told first
            tab.get_by_text('Run', exact=True).first.click()
            tab.get_by_text('Run All Cells', exact=True).click()
            try:
                tab.wait_for_function("document.querySelector('.jp-InputPrompt').textContent.trim() !== '[ ]:'", timeout=5000)
                break
            except sync_api.TimeoutError:
                pass
        try:
            tab.wait_for_selector('.mim canvas', timeout=45_000)
        except sync_api.TimeoutError:
            shot(tab, 'lab-without-explorer')
            raise
        return tab
    return opened


def in_kernel(tab, expression: str) -> str:
    "What the notebook's kernel prints for an expression, through a new last cell"
    tab.locator('.jp-Cell .cm-content').last.click()
    tab.keyboard.press('Control+a')
    tab.keyboard.type(f'print("<<", {expression}, ">>")')
    tab.keyboard.press('Control+Enter')
    answer = tab.locator('.jp-OutputArea-output', has_text='<<').last
    answer.wait_for()
    return answer.inner_text().strip().removeprefix('<<').removesuffix('>>').strip()


def milliseconds_to_redraw(tab, canvas: str, wait: str, moves: int = 20) -> float:
    """Median time, measured inside the page, from a pointer's move over `canvas` until the picture is drawn.
    `wait`: a JavaScript expression whose value changes with the drawing"""
    return tab.evaluate('''async ([canvas, wait, moves]) => {
        const node = document.querySelector(canvas), box = node.getBoundingClientRect(), times = [], read = () => eval(wait);
        for (let i = 0; i < moves; i++) {
            const before = read(), start = performance.now();
            const place = { clientX: box.left + box.width * (.05 + .9 * ((i * 7) % moves) / moves), clientY: box.top + box.height * (.05 + .9 * ((i * 3) % moves) / moves) };
            node.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, pointerId: 1, ...place }));
            while (read() === before && performance.now() - start < 2000) await new Promise((done) => setTimeout(done, 0));
            await new Promise((done) => requestAnimationFrame(done));
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b)[Math.floor(moves / 2)];
    }''', [canvas, wait, moves])


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
