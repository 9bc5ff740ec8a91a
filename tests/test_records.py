"""Records under several writers, and pages that say nothing but what records and papers say"""
import json
import multiprocessing as mp
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from mimrepro.cli import main
from mimrepro.data import open_source
from mimrepro.features import image_size
from mimrepro.method import build, load_method, method_names
from mimrepro.papers import find_items, published, published_papers
from mimrepro.protocols import protocol_named
from mimrepro.records import Record, read_records, write_record
from mimrepro.report import ledger, write_page
from mimrepro.weights import load_pretrained, save_pretrained

PAGES = Path(__file__).parents[1] / 'paper_figures'


def append(folder, writer, records):
    for seed in range(records):
        write_record(Record('mae', 'figure-5', f'row {writer}', 'demo', seed, {'lin': float(seed)}, {'text': 'x' * 5000}, 'scenes', 0, 'CPU', {}, '', 0., ''), folder)


def test_writers_do_not_tear_each_others_lines(tmp_path):
    writers = [mp.get_context('spawn').Process(target=append, args=(tmp_path, number, 50)) for number in range(3)]
    for writer in writers: writer.start()
    for writer in writers: writer.join(600)
    assert [writer.exitcode for writer in writers] == [0] * 3
    assert {(r.row, r.seed) for r in read_records(tmp_path)} == {(f'row {writer}', seed) for writer in range(3) for seed in range(50)}


@pytest.mark.parametrize('cut', [1, 40, 2000, 5200])
def test_a_line_torn_anywhere_costs_only_itself(tmp_path, cut):
    append(tmp_path, 0, 3)
    path = tmp_path / 'mae/figure-5/runs.jsonl'
    path.write_bytes(path.read_bytes()[:-cut])
    append(tmp_path, 1, 1)
    with pytest.warns(UserWarning, match='line 3') if cut > 1 else pytest.MonkeyPatch.context():
        rows = [(r.row, r.seed) for r in read_records(tmp_path)]
    assert rows == [('row 0', 0), ('row 0', 1)] + [('row 0', 2)] * (cut == 1) + [('row 1', 0)]


def test_pages_come_out_of_their_records(tmp_path):
    items = find_items()
    shown = [item for known in items.values() for item in known.values() if (PAGES / item.paper / item.id / 'table.md').exists()]
    for item in shown:
        home = tmp_path / item.paper / item.id
        shutil.copytree(PAGES / item.paper / item.id, home)
        assert write_page(item, tmp_path).read_text() == (PAGES / item.paper / item.id / 'table.md').read_text(), f'{item.paper} {item.id}: draw the page again'
    if (PAGES / 'README.md').exists():
        assert ledger(tmp_path, items).read_text() == (PAGES / 'README.md').read_text(), 'write the ledger again'


@pytest.mark.parametrize('name', method_names())
def test_a_recipe_promises_only_what_was_read(name):
    "Every number that a recipe says it reaches stands in the file of its paper, and not from memory"
    printed = {cell.value for entry in published(name).entries.values() for row in entry.rows for cell in row if cell.grade != 'unverified' and isinstance(cell.value, (int, float))}
    for key, recipe in load_method(name).recipes.items():
        assert set(recipe.reaches.values()) <= printed, f'{name}/{key} names a number that nobody read'


def test_every_published_entry_has_its_item():
    items = find_items()
    for paper in published_papers():
        assert published(paper).entries.keys() <= items[paper].keys()


def test_every_measure_names_a_protocol_and_its_settings():
    for item in (item for known in find_items().values() for item in known.values()):
        for column in item.columns:
            for scale, measure in column.measures.items():
                assert measure.settings.keys() <= protocol_named(measure.protocol).settings.keys(), f'{item.paper} {item.id}, {column.metric} at {scale}'


drawn = [item for known in find_items().values() for item in known.values() if item.draw and any('demo' in row.recipes for row in item.rows)]


@pytest.mark.parametrize('item', drawn, ids=lambda item: f'{item.paper}-{item.id}')
def test_every_picture_can_be_drawn(item):
    method = build(next(row.recipes['demo'] for row in item.rows if 'demo' in row.recipes)).eval()
    images, labels = open_source(f'scenes:{image_size(method.encoder)[0]}', n=256).arrays()
    panels, titles = item.draw(method, images, labels)
    assert panels.dtype in (torch.uint8, np.uint8) and panels.ndim == 5 and panels.shape[1:3] == (len(titles), 3)


def test_rows_in_two_processes_are_recorded(tmp_path, capsys):
    assert main(['reproduce', 'lcmae', 'table-T-cost-derived', '--processes', '2', '--out', str(tmp_path / 'two'), '--runs', str(tmp_path / 'runs')]) == 0
    assert '3/3 trainings with their rows done' in capsys.readouterr().out
    rows = {record.row: record.metrics for record in read_records(tmp_path / 'two')}
    assert rows == {record.row: record.metrics for record in read_records(PAGES, 'lcmae', 'table-T-cost-derived')}


def test_workers_end_with_their_parent(tmp_path):
    code = 'import sys; from mimrepro.cli import main; sys.exit(main(sys.argv[1:]))'
    words = ['reproduce', 'mae', 'figure-7', '--processes', '2', '--out', str(tmp_path / 'pages'), '--runs', str(tmp_path / 'runs'), '--device', 'cpu']
    parent = subprocess.Popen([sys.executable, '-c', code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # held open by every process of the family
    while not list((tmp_path / 'runs').glob('*')):
        assert parent.poll() is None, parent.stderr.read().decode()
        time.sleep(.2)
    parent.kill()
    parent.stderr.read()  # ends when the last of them has


@pytest.mark.parametrize('where', sorted({(item.paper, item.id) for known in find_items().values() for item in known.values() if item.rows}), ids='-'.join)
def test_every_row_can_be_built_and_a_small_one_kept(where, tmp_path):
    for scale, recipe in {json.dumps(asdict(recipe)): (scale, recipe) for row in find_items()[where[0]][where[1]].rows for scale, recipe in row.recipes.items()}.values():
        with torch.device('cpu' if scale == 'demo' else 'meta'):
            method = build(recipe)
        if scale == 'demo':
            save_pretrained(method, tmp_path, recipe)
            kept = load_pretrained(str(tmp_path)).state_dict()
            assert all(torch.equal(value, kept[name]) for name, value in method.state_dict().items())
