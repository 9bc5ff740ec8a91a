"Several processes, copied (DDP) and cut up (FSDP2): the losses of one process, and states that move between them"
import json
import os
import signal
import warnings
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from mimrepro.data import open_source
from mimrepro.launch import launch
from mimrepro.method import build, load_method, method_names
from mimrepro.processes import block_lists, pieces, process_group
from mimrepro.trainer import Trainer

METHODS = method_names()


def recipe_of(name: str, steps: int, **model):
    """A method of demo size on 16 images per step, at a tenth of its learning rate.
    At the whole one CMAE's losses in one process move by 1e-4 within 12 steps if its weights start one rounding apart; at a tenth by 3e-7 within 20.
    """
    recipe = load_method(name).recipes['demo']
    return replace(recipe, base_lr=recipe.base_lr / 10, batch=16, epochs=steps // 2, warmup_epochs=0, precision='fp32', model={**recipe.model, **model}), f'scenes:{build(recipe).crops[0].sides[0] + 8}'


class Stopper:
    "A writer that asks the run to stop when it has logged a step"
    def __init__(self, step): self.step = step
    def write(self, line): line['step'] == self.step and os.kill(os.getpid(), signal.SIGTERM)
    def close(self): pass


def train(run, name, steps, stop=None, model={}, **arguments) -> list[float]:
    "Losses of all steps so far; `stop`: the step at which it is asked to stop"
    recipe, data = recipe_of(name, steps, **model)
    writers = [Stopper(stop)] if stop else []
    trainer = Trainer(recipe, open_source(data, n=32), run, 'cpu', log_every=1, save_every=100, progress=False, writers=writers, **arguments)
    try:
        trainer.fit()
    except SystemExit as left:
        assert left.code == 143
    trainer.team.first(lambda: None)  # until the first has written
    return [json.loads(line)['loss'] for line in open(run / 'metrics.jsonl')]


def member(rank: int, meeting: str, jobs: list):
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=meeting)
    torch.set_num_threads(1)
    with process_group('cpu'):
        for run, arguments in jobs:
            train(run, **arguments)


def two(jobs: list):
    "Train in two processes, one job after the other"
    import socket
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    mp.spawn(member, (str(port), jobs), nprocs=2)


def losses(run):
    return [json.loads(line)['loss'] for line in open(run / 'metrics.jsonl')]


def compare(folder, steps, names):
    jobs = {(name, how): (folder / f'{name}-{how}', dict(name=name, steps=steps, parallel=how)) for name in names for how in ('ddp', 'fsdp')}
    two(list(jobs.values()))
    for name in names:
        one = train(folder / name, name, steps)
        assert len(one) == steps
        for how in ('ddp', 'fsdp'):
            assert losses(folder / f'{name}-{how}') == pytest.approx(one, rel=1e-5), (name, how)
            ended, alone = (load_file(folder / run / 'model.safetensors') for run in (f'{name}-{how}', name))
            assert ended.keys() == alone.keys()


def test_two_processes_give_the_losses_of_one(tmp_path):
    compare(tmp_path, 4, METHODS)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_over_20_steps(tmp_path):
    compare(tmp_path, 20, METHODS)


def test_a_state_moves_between_one_and_two_processes(tmp_path):
    "Stopped and resumed in between: two copied -> one -> two cut up, and the other way round"
    small = dict(model=dict(depth=1, embed_dim=48), name='cmae', steps=24)
    whole = train(tmp_path / 'whole', **small)
    there, back = tmp_path / 'there', tmp_path / 'back'
    train(back, stop=3, **small)
    two([(there, dict(small, stop=4)), (back, dict(small, stop=8, parallel='fsdp'))])
    assert (len(losses(there)), len(losses(back))) == (12, 16), 'asked at step 4, agreed at step 12'
    train(there, stop=14, **small)
    two([(there, dict(small, parallel='fsdp')), (back, dict(small, parallel='ddp', recompute=True))])
    for run in (there, back):
        assert losses(run) == pytest.approx(whole, rel=1e-5) and len(whole) == 24


@pytest.mark.parametrize('name', METHODS)
def test_recomputed_blocks_change_nothing(name, tmp_path):
    assert train(tmp_path / 'again', name, 2, recompute=True) == train(tmp_path / 'once', name, 2)


@pytest.mark.parametrize('name', METHODS)
def test_the_pieces_are_most_of_the_encoder(name):
    method = build(load_method(name).recipes['demo'])
    before = {key: value.clone() for key, value in method.state_dict().items()}
    found = pieces(method)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items()) and method.training
    encoder = [p for block in block_lists(method.encoder) for p in block.parameters()]
    held = {id(p) for piece in found for p in piece.parameters()}
    assert sum(p.numel() for p in encoder if id(p) in held) > .9 * sum(p.numel() for p in encoder)


# ---- a process that dies is started again

class Killer:
    "A writer that kills its process without warning, once, when it has logged a step"
    def __init__(self, step, mark): self.step, self.mark = step, mark

    def write(self, line):
        if line['step'] == self.step and not self.mark.exists():
            self.mark.write_text('killed')
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self): pass


def test_a_killed_process_is_started_again_and_the_weights_are_the_same(tmp_path):
    recipe, data = recipe_of('mae', 8, depth=1, embed_dim=48)
    arguments = dict(device='cpu', log_every=1, save_every=3, progress=False)
    two([(tmp_path / 'whole', dict(name='mae', steps=8, model=dict(depth=1, embed_dim=48), parallel='ddp'))])
    launch(recipe, 2, open_source(data, n=32), tmp_path / 'run', restarts=1, writers=[Killer(5, tmp_path / 'mark')], **arguments)
    assert (tmp_path / 'mark').exists() and len(losses(tmp_path / 'run')) == 8
    whole, run = (load_file(tmp_path / name / 'model.safetensors') for name in ('whole', 'run'))
    assert all(torch.equal(whole[name], run[name]) for name in whole)


@pytest.mark.slow
def test_a_process_that_dies_too_often_ends_the_launch_with_its_name(tmp_path):
    recipe, data = recipe_of('mae', 8, depth=1, embed_dim=48)
    with pytest.raises(ChildProcessError, match=r'process 0 died, after 0 restarts .*SIGKILL.*the last good state is kept'):
        launch(recipe, 2, open_source(data, n=32), tmp_path / 'run', restarts=0, device='cpu', log_every=1, progress=False, writers=[Killer(3, tmp_path / 'mark')])
    with pytest.raises(ValueError, match='recipe.epochs: 4 there, 5 here'):
        launch(replace(recipe, epochs=5), 2, open_source(data, n=32), tmp_path / 'run', device='cpu', progress=False)
