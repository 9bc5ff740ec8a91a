"What a recipe costs: counted like PyTorch counts, predicted with sources, asked for from a shell"
import json
import time
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mimrepro.cli import main
from mimrepro.costs import cost, count_step, largest_batch, memory_of, pass_seconds, row_cost, update_seconds
from mimrepro.devices import ceilings, devices, grades, measured
from mimrepro.method import build, method_names, recipe_named
from mimrepro.performance import gpu_counts, read_lines, sections, write_performance


@pytest.mark.parametrize('name', [*(f'{method}/demo' for method in method_names()), 'localmim/swin-small'])
def test_the_count_is_that_of_pytorch(name):
    recipe = replace(recipe_named(name), precision='fp32')
    with torch.device('meta'):
        model = build(recipe)
        images, draws = torch.empty(4, len(model.crops), 3, *model.crops[0].sides, dtype=torch.uint8), {key: d.to('meta') for key, d in model.draw(4).items()}
        with FlopCounterMode(display=False) as counter:
            model(model.views(images, draws), draws).loss.backward()
    assert count_step(recipe, fused=False).flops == pytest.approx(counter.get_total_flops() / 4, rel=.02)


def test_a_step_of_this_machine_is_predicted():
    "In processor seconds and within a factor of two: other work on the machine changes even those"
    recipe = replace(recipe_named('mae/demo'), precision='fp32')
    model, n = build(recipe), 64
    images, draws = torch.randint(0, 256, (n, 1, 3, 32, 32), dtype=torch.uint8), model.draw(n)
    times = []
    for _ in range(5):
        started = time.process_time()
        model(model.views(images, draws), draws).loss.backward()
        times.append(time.process_time() - started)
    said = sum(pass_seconds(count_step(recipe), n, measured(ceilings('cpu', tries=5)), 'fp32').values())
    assert .5 < said / min(times) < 2, (said, times)


@pytest.mark.parametrize('name', devices)
def test_every_number_of_a_device_has_a_source(name):
    device = devices[name]
    assert all(source.split(' ')[0].rstrip(':') in grades for source in device.source.values())
    assert not any(source.startswith('measured') for source in device.source.values()) or name == 'h200'


def test_memory_decides_the_batch():
    recipe, device = recipe_named('mae/huge-1600'), devices['v100']
    kept, again = count_step(recipe, fused=False), count_step(recipe, fused=False, recompute=True)
    n = largest_batch(kept, device)
    assert sum(memory_of(kept, n).values()) < .9 * device.memory <= sum(memory_of(kept, n + 1).values())
    assert largest_batch(again, device) > 2 * n and largest_batch(kept, device, 64, True) > n
    found = cost(recipe, 'v100', 8)
    assert found.images_at_once <= found.largest and found.images_at_once * found.passes == recipe.batch // 8
    assert found.seconds['update'] == update_seconds(kept, device)


def test_more_devices_never_take_longer_but_cost_more():
    costs = [cost(recipe_named('mae/large-1600'), 'h200', n) for n in gpu_counts[:4]]
    assert all(a.step_seconds > b.step_seconds and a.gpu_hours < b.gpu_hours * 1.02 for a, b in zip(costs, costs[1:]))
    assert row_cost(recipe_named('mae/large-1600'))['hours'] == costs[0].gpu_hours


def test_from_a_shell(capsys):
    assert main(['cost', 'localmim/base-100', '--gpu', 'a100', '--count', '4', '--shard', '--json']) == 0
    row, = json.loads(capsys.readouterr().out)
    assert row['fits'] and row['gpu_hours'] > 0 and set(row['seconds']) == {'products', 'traffic', 'starting', 'update', 'exchange'} and row['sources']['bf16'].startswith('published')
    for words, says in [(['mae/large-800', '--gpu', 'h20'], "did you mean 'h200'"), (['mae/small'], '--data-size'), (['mae/large-800', '--count', '3'], 'cannot be shared by 3'),
                        (['mae/large-800', '--recompile'], "did you mean '--recompute'"), (['mae/large-800', 'epoch=3'], "did you mean 'epochs'")]:
        try:
            code = main(['cost', *words])
        except SystemExit as end:
            code = end.code
        assert code == 2 and says in capsys.readouterr().err


def test_pages_are_the_same_when_drawn_again_and_leave_out_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr('mimrepro.performance.published_rows', lambda: [dict(run='one', published_hours=1.)])
    assert list(sections(tmp_path)) == ['papers', 'scaling'] and read_lines(tmp_path / 'no.jsonl') == []
    (tmp_path / 'performance').mkdir()
    record = dict(source='scenes', images_per_second=10., ours=dict(best=3.), environment=dict(device='CPU here', versions=dict(torch='2', timm='1', mimrepro='0'), commit='abc', when='2026-01-01T00'), more=[1])
    (tmp_path / 'performance' / 'data.jsonl').write_text(json.dumps(record))
    page = write_performance(tmp_path)
    first = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    assert '## Data' in page.read_text() and '| scenes | 10 | 3 |' in page.read_text() and 'CPU here' in page.read_text() and 'commit abc' in page.read_text()
    write_performance(tmp_path)
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == first
