"A browser, a page without a kernel and JupyterLab with one, for the tests of the explorers"
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

ROOT = Path(__file__).parent.parent
ALLOWED = ('file:', 'data:', 'blob:', 'about:', 'http://127.0.0.1', 'ws://127.0.0.1')


@pytest.fixture(scope='session')
def browser():
    "A chromium of the system, without a window"
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    chromium = os.environ.get('MIMREPRO_CHROMIUM') or next(filter(None, map(which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not chromium:
        pytest.skip('no chromium found: install it, or set MIMREPRO_CHROMIUM')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
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
    from playwright.sync_api import TimeoutError

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
            except TimeoutError:
                pass
        try:
            tab.wait_for_selector('.mim canvas', timeout=150_000)  # a busy machine takes long to import torch
        except TimeoutError:
            shot(tab, 'lab-without-explorer')
            raise
        return tab
    return opened
