"""Records under several writers, and pages that say nothing but what records and papers say"""
import json
import multiprocessing as mp
import re
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
from mimrepro.report import ledger, runs_at, standings, write_page
from mimrepro.settings import settings_rows
from mimrepro.tables import cell_text, command, in_print, label_columns, table_lines
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
        if (PAGES / 'costs.json').exists(): shutil.copy(PAGES / 'costs.json', tmp_path)
        assert write_page(item, tmp_path).read_text() == (PAGES / item.paper / item.id / 'table.md').read_text(), f'{item.paper} {item.id}: draw the page again'
    if (PAGES / 'README.md').exists():
        assert ledger(tmp_path, items).read_text() == (PAGES / 'README.md').read_text(), 'write the ledger again'


def wrong_cells(item, page):
    "Published cells of a page that say anything else than what was read, or a number that nobody did"
    lines = [[cell.strip(' *') for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in page.splitlines() if line.startswith('| ')][2:]
    if item.kind == 'settings':
        pairs = [(line[2], cell) for line, (_, _, cell, _, _) in zip(lines, settings_rows(item), strict=True)]
    else:
        labels = label_columns(item)
        theirs = [name for name in item.entry.columns if name not in labels]
        pairs = [(line[len(labels) + place], cells[name]) for line, (_, cells) in zip(lines, table_lines(item), strict=True) if cells for place, name in enumerate(theirs)]
    return [(text, cell) for text, cell in pairs if text != cell_text(cell).strip(' *') or (text == 'not verified') != (cell.grade == 'unverified')]


with_tables = [item for known in find_items().values() for item in known.values() if item.entry and item.entry.columns and (item.kind != 'pictures' or item.columns)]


def test_no_page_shows_as_published_what_nobody_read():
    for item in with_tables:
        assert not wrong_cells(item, (PAGES / item.paper / item.id / 'table.md').read_text()), f'{item.paper} {item.id}'


def test_a_page_that_shows_a_remembered_number_is_found():
    item = find_items()['cmae']['table-2']
    page, remembered = (PAGES / 'cmae/table-2/table.md').read_text(), next(cell for cell in item.entry.column('acc') if cell.grade == 'unverified' and cell.value)
    assert wrong_cells(item, page.replace('not verified |', f'{remembered.value} |', 1)) == [(str(remembered.value), remembered)]
    assert wrong_cells(item, page.replace('| 84.7 |', '| 84.8 |', 1))


def test_claims_of_the_papers_hold_in_their_own_numbers():
    known = {(item.paper, item.id, claim.text): in_print(item, claim) for items in find_items().values() for item in items.values() for claim in item.claims}
    shown = {place: effect for place, effect in known.items() if effect is not None}
    wrong = {place for place, effect in shown.items() if effect <= 0}
    assert len(shown) > 60 and not wrong, wrong


def test_nothing_compared_is_nothing_claimed():
    items = find_items()
    assert standings(items['cmae']['table-1'], [])[0][0] == 'no claim'  # a table of words that nobody read
    assert [(word, data) for word, data in standings(items['localmim']['table-S-ade20k'], [])[0][1]['paper']] == [('holds', 'computed')]


def test_what_was_not_run_has_its_recipe_cost_and_command():
    for item in (item for known in find_items().values() for item in known.values() if runs_at(item, 'paper')):
        line = next(line for line in (PAGES / item.paper / item.id / 'table.md').read_text().splitlines() if line.startswith('- **paper**: not run; recipe `'))
        assert re.search(r'predicted: [\d,]+ hours of one NVIDIA H200', line) and f'`{command(item, "paper", "no images", [])}`' in line, line


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
