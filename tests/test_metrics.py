"Metrics on their way to people and other programs, and run folders side by side"
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimrepro.cli import main
from mimrepro.metrics import flops_per_image, live_line, matmul_ceiling, read_lines, writers
from mimrepro.method import recipe_named

SMALL = ['model.embed_dim=32', 'model.depth=1', 'model.num_heads=2', 'model.decoder_embed_dim=16', 'model.patch_size=8', 'epochs=1', 'warmup_epochs=0',
         'batch=4000', 'precision=fp32']


def lines(count: int, start: int = 1) -> list[dict]:
    return [dict(step=k, epoch=k / 4, lr=1e-3, images_per_second=100., seconds=float(k), wait=.1, memory=1., loss=1 / k, pixels=.5 / k) for k in range(start, start + count)]


def test_tensorboard_reads_what_was_written_and_resumed(tmp_path):
    pytest.importorskip('tensorboard', reason='pip install tensorboard')
    for start in (1, 3):  # the second session goes back to step 3
        writer, = writers('tensorboard', tmp_path)
        for line in lines(4, start): writer.write(line)
        writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    assert {'loss', 'pixels', 'lr', 'images_per_second', 'wait'} <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Scalars('loss')] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars('loss')[3].value == .25


def test_weights_and_biases_without_a_network(tmp_path):
    pytest.importorskip('wandb', reason='pip install wandb')
    (tmp_path / 'run.json').write_text(json.dumps(dict(recipe=dict(epochs=1))))
    script = ("import sys\nfrom mimrepro.metrics import writers\nwriter, = writers('wandb', sys.argv[1])\n"
              "for k in (1, 2): writer.write(dict(step=k, loss=1 / k))\nwriter.close()")
    done = subprocess.run([sys.executable, '-c', script, str(tmp_path)], env=os.environ | dict(WANDB_MODE='offline', WANDB_SILENT='true'), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / 'wandb').glob('offline-run-*/*.wandb'))


@pytest.mark.parametrize('name, package', [('tensorboard', 'tensorboard'), ('wandb', 'wandb')])
def test_a_missing_writer_says_what_to_install(tmp_path, monkeypatch, name, package):
    for module in (package, 'torch.utils.tensorboard', 'tensorboard.compat'): monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f'pip install {package}'):
        writers(name, tmp_path)
    with pytest.raises(ValueError, match="no writer 'wanb': did you mean 'wandb'"):
        writers('wanb', tmp_path)


def test_what_a_real_run_says(tmp_path, capsys):
    run = tmp_path / 'run'
    assert main(['pretrain', 'mae/demo', *SMALL, '--run', str(run), '--device', 'cpu']) == 0
    last = read_lines(run)[-1]
    said = live_line(last, last['step'], flops_per_image(recipe_named('mae/demo')), matmul_ceiling('cpu', 'fp32', .05))
    assert said.startswith(f'loss {last["loss"]:.4f}') and '% of peak' in said
    (tmp_path / 'other').mkdir()
    known = json.loads((run / 'run.json').read_text())
    known['recipe']['seed'] = 5
    (tmp_path / 'other' / 'run.json').write_text(json.dumps(known))
    (tmp_path / 'other' / 'metrics.jsonl').write_text((run / 'metrics.jsonl').read_text())
    capsys.readouterr()
    assert main(['runs', str(tmp_path), '--json']) == 0
    rows = {Path(row['run']).name: row for row in json.loads(capsys.readouterr().out)}
    assert (rows['run']['state'], rows['run']['step'], rows['run']['total'], rows['run']['differs']) == ('finished', 5, 5, 'seed=0')
    assert (rows['other']['state'], rows['other']['differs']) == ('stopped', 'seed=5')
    assert main(['plot', str(run), str(tmp_path / 'other'), '--out', str(tmp_path / 'curves.svg')]) == 0
    assert '<svg' in (tmp_path / 'curves.svg').read_text()
    assert main(['plot', str(tmp_path / 'nowhere')]) == 2
