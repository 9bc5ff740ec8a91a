"Runs that are killed, stopped, moved or spoiled: what a process boundary is needed for"
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from mimrepro import trainer
from mimrepro.method import load_method, method_names, recipe_named
from mimrepro.data import open_source
from mimrepro.checkpoints import newest_state
from mimrepro.trainer import Trainer

RECIPE = replace(recipe_named('mae/demo'), name='tiny', model=dict(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=16,
                 decoder_depth=1, decoder_num_heads=2), epochs=3, warmup_epochs=1, batch=16, precision='fp32')
STEPS = 12  # 64 images, 4 steps in each of 3 epochs

fork = multiprocessing.get_context('fork')  # what is imported here need not be imported again


class Left(NamedTuple):
    "How a process ended"
    code: int
    out: str


def child(run, at, how, recipe, out):
    sys.stdout = open(out, 'w')
    torch.set_num_threads(1)
    step, count = trainer.train_step, [0]

    def half(state, file):
        file.write(b'half a state')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def killed(*args):
        result = step(*args)
        count[0] += 1
        if count[0] == at and how == 'save':
            torch.save = half
        elif count[0] == at:
            os.kill(os.getpid(), getattr(signal, how))
        return result
    trainer.train_step = killed
    code = 1
    try:
        tiny(run, recipe).fit()
        code = 0
    except SystemExit as left:
        code = left.code
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def launch(run, at=0, how='SIGKILL', recipe=RECIPE) -> Left:
    "Train in a process of its own, which is killed after `at` of its steps"
    out = f'{run}.out'
    process = fork.Process(target=child, args=(run, at, how, recipe, out))
    process.start()
    process.join(300)
    return Left(process.exitcode, open(out).read())


def tiny(run, recipe=RECIPE, **more):
    return Trainer(recipe, open_source('scenes:32', n=64), run, device='cpu', progress=False, **{'log_every': 2, 'save_every': 3, **more})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Weights and metrics of a run that nothing interrupted"
    run = tmp_path_factory.mktemp('whole')
    assert launch(run).code == 0
    return load_file(run / 'model.safetensors'), [json.loads(line) for line in open(run / 'metrics.jsonl')]


@pytest.mark.parametrize('how, kills', [('SIGKILL', [1, 5]), ('SIGKILL', [12]), ('SIGTERM', [4, 5]), ('SIGINT', [7]), ('SIGUSR1', [8]), ('save', [3, 6])])
def test_a_run_killed_at_any_step_ends_with_the_same_weights(tmp_path, whole, how, kills):
    weights, metrics = whole
    for at in kills:
        result = launch(tmp_path, at, how)
        assert result.code == {'SIGTERM': 143, 'SIGUSR1': 138, 'SIGINT': 130}.get(how, -signal.SIGKILL)
        if how in ('SIGTERM', 'SIGINT', 'SIGUSR1'):
            assert 'the same command continues from here' in result.out
    assert launch(tmp_path).code == 0
    ended = load_file(tmp_path / 'model.safetensors')
    assert all(torch.equal(ended[name], weights[name]) for name in weights)
    lines = [json.loads(line) for line in open(tmp_path / 'metrics.jsonl')]
    steps = [line['step'] for line in lines]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS, 'every log point once, up to the end'
    assert {line['step']: line['loss'] for line in metrics}[STEPS] == pytest.approx(lines[-1]['loss'], rel=.05)


def test_a_finished_run_is_left_alone(tmp_path):
    trainer = lambda: Trainer(RECIPE, open_source('scenes:32', n=64), tmp_path, device='cpu', progress=False)
    first = trainer().fit().state_dict()
    again = trainer()
    ended = again.fit().state_dict()
    assert again.step == STEPS and all(torch.equal(first[name], ended[name]) for name in first)


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    Trainer(replace(RECIPE, epochs=1), open_source('scenes:32', n=64), tmp_path, device='cpu', progress=False).fit()
    with pytest.raises(ValueError, match=r'recipe.epochs: 1 there, 3 here'):
        Trainer(RECIPE, open_source('scenes:32', n=64), tmp_path, device='cpu', progress=False).fit()
    with pytest.raises(ValueError, match=r'data.images: 64 there, 80 here'):
        Trainer(replace(RECIPE, epochs=1), open_source('scenes:32', n=80), tmp_path, device='cpu', progress=False).fit()


def spoil(trainer, at: list[int], value=float('nan')):
    "Multiply the loss of these steps, counted from 1"
    forward = trainer.method.forward

    def spoiled(views, draws):
        step = forward(views, draws)
        return step._replace(loss=step.loss * value) if trainer.step + 1 in at else step
    trainer.method.forward = spoiled
    return trainer


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(FloatingPointError, match=r'the loss became nan at step 8 .*base_lr'):
        spoil(tiny(tmp_path, rollbacks=0), [8]).fit()
    assert newest_state(tmp_path)['step'] == 6
    bad = json.loads((tmp_path / 'bad_batch-8.json').read_text())
    assert bad['step'] == 8 and len(bad['images']) == 16
    batch = torch.load(tmp_path / 'bad_batch-8.pt')
    assert batch['images'].shape == (16, 1, 3, 32, 32) and batch['numbers'].tolist() == bad['images']
    healthy = tiny(tmp_path)
    healthy.fit()
    assert healthy.step == STEPS


@pytest.mark.filterwarnings('ignore:the loss')
def test_a_bad_batch_is_left_out_the_same_way_with_and_without_a_kill(tmp_path):
    once = spoil(tiny(tmp_path / 'once'), [5, 8])
    weights = once.fit().state_dict()
    assert once.step == STEPS and once.skipped == [5, 8]
    lines = [json.loads(line) for line in open(tmp_path / 'once/metrics.jsonl')]
    assert [line['step'] for line in lines] == sorted({line['step'] for line in lines}) and all(line['loss'] < 10 for line in lines)

    class Kill:  # a power cut between the rollback and the next state
        def write(self, line):
            if line['step'] == 8: raise KeyboardInterrupt
        def close(self): pass
    with pytest.raises(KeyboardInterrupt):
        spoil(tiny(tmp_path / 'twice', writers=[Kill()]), [5, 8]).fit()
    again = spoil(tiny(tmp_path / 'twice'), [5, 8])
    ended = again.fit().state_dict()
    assert again.skipped == [5, 8] and all(torch.equal(weights[name], ended[name]) for name in weights)


def test_too_many_bad_batches_stop_the_run(tmp_path):
    with pytest.warns(UserWarning, match='rollback 2 of at most 2'), pytest.raises(FloatingPointError, match='at step 9 .*after 2 rollbacks'):
        spoil(tiny(tmp_path, rollbacks=2), [4, 7, 9, 11]).fit()
    assert sorted(path.name for path in tmp_path.glob('bad_batch-*.pt')) == ['bad_batch-4.pt', 'bad_batch-7.pt', 'bad_batch-9.pt']


@pytest.mark.filterwarnings('ignore:the loss')
def test_a_spike_is_a_bad_loss_where_it_is_asked_for(tmp_path):
    recipe = replace(RECIPE, epochs=8)
    calm = spoil(tiny(tmp_path / 'calm', recipe), [30], 50.)
    calm.fit()
    watched = spoil(tiny(tmp_path / 'watched', recipe, spike=5.), [30], 50.)
    watched.fit()
    assert calm.skipped == [] and watched.skipped == [30]


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PermissionError, match='cannot write to the run folder'):
        Trainer(RECIPE, open_source('scenes:32', n=64), tmp_path / 'file' / 'run', device='cpu')


def test_half_precision_of_the_wrong_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a GPU"):
        Trainer(replace(RECIPE, precision='fp16'), open_source('scenes:32', n=64), tmp_path, device='cpu')


@pytest.mark.parametrize('precision, accumulate', [('fp32', 1), ('fp32', 4), ('bf16', 1)])
def test_accumulation_and_precision_change_little(tmp_path, whole, precision, accumulate):
    recipe = replace(RECIPE, precision=precision, accumulate=accumulate)
    Trainer(recipe, open_source('scenes:32', n=64), tmp_path, device='cpu', log_every=2, save_every=3, progress=False).fit()
    losses = [json.loads(line)['loss'] for line in open(tmp_path / 'metrics.jsonl')]
    assert losses == pytest.approx([line['loss'] for line in whole[1]], rel=1e-5 if precision == 'fp32' else 2e-2)


DISTRIBUTED = '''
import json, sys, torch
torch.set_num_threads(1)
from mimrepro.method import Recipe
from mimrepro.data import open_source
from mimrepro.processes import process_group
from mimrepro.trainer import Trainer
with process_group('cpu'):
    Trainer(Recipe(**json.loads(sys.argv[1])), open_source('scenes:32', n=64), sys.argv[2], device='cpu', log_every=2, save_every=3, progress=False).fit()
'''


def test_two_processes_under_torchrun_see_what_one_sees(tmp_path, whole):
    (tmp_path / 'run.py').write_text(DISTRIBUTED)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    result = subprocess.run([*torchrun, str(tmp_path / 'run.py'), json.dumps(asdict(RECIPE)), str(tmp_path / 'out')],
                            capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr
    losses = [json.loads(line)['loss'] for line in open(tmp_path / 'out' / 'metrics.jsonl')]
    assert losses == pytest.approx([line['loss'] for line in whole[1]], rel=1e-5)


@pytest.mark.slow
def test_the_command_works_under_torchrun_and_starts_processes_itself(tmp_path):
    "Both print the result once, and end with the same weights"
    command = ['pretrain', 'mae/demo', 'batch=2048', 'epochs=1', 'warmup_epochs=0', 'precision=fp32', 'model.depth=1', '--device', 'cpu', '--json']
    entry = tmp_path / 'mimrepro'
    entry.write_text(f'#!{sys.executable}\nimport sys\nfrom mimrepro.cli import main\nif __name__ == "__main__": sys.exit(main())\n')
    entry.chmod(0o755)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '--no-python', str(entry)]
    for words, run in [(torchrun, 'torchrun'), ([str(entry)], 'itself')]:
        more = ['--run', str(tmp_path / run), *(['--processes', '2'] if run == 'itself' else [])]
        result = subprocess.run([*words, *command, *more], capture_output=True, text=True, timeout=600, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        assert result.returncode == 0, result.stderr
        assert len(json.loads(result.stdout)) == 1
    torchrun, itself = (load_file(tmp_path / run / 'model.safetensors') for run in ('torchrun', 'itself'))
    assert all(torch.equal(torchrun[name], itself[name]) for name in itself)


# ---- nothing waits for the device between log points

WAITS = ('item', 'tolist', '__bool__', '__int__', '__float__', 'cpu', 'numpy')
READ = torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten._unique2, torch.ops.aten.equal


class Detector(TorchDispatchMode):
    "Refuses the operations whose result, or its size, the program must wait for: a GPU would stand still"
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        chosen = [i for i in args[1] if i is not None] if function.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) else []
        if function.overloadpacket in READ or any(i.dtype in (torch.bool, torch.uint8) for i in chosen):
            raise AssertionError(f'the step reads a number from the device: {function}')
        return function(*args, **kwargs or {})


def test_the_detector_sees_what_reads_a_number():
    x = torch.arange(3.)
    for read in (lambda: x.sum().item(), lambda: bool(x[0]), lambda: x[x > 1], lambda: x.nonzero(), lambda: x.unique()):
        with pytest.raises(AssertionError, match='reads a number'), Detector():
            read()
    with Detector():
        (x * 2).sum() + x[torch.tensor([0, 2])].mean()


STEPPED = [*((name, {}) for name in method_names()), ('mae', dict(target='pca'))]


@pytest.mark.parametrize('name, model', STEPPED, ids=lambda value: value if isinstance(value, str) else ','.join(map(str, value.values())) or 'default')
def test_a_step_reads_no_number_from_the_device(name, model, tmp_path, monkeypatch):
    "On a GPU each of these would wait for everything before it"
    recipe = load_method(name).recipes['demo']
    recipe = replace(recipe, batch=16, precision='fp32', clip=1., model={**recipe.model, **model})
    made = Trainer(recipe, open_source('scenes:40', n=32), tmp_path, device='cpu', progress=False)
    images, draws = next(iter(made.loader.epoch(0))).images, made.draws(0)
    made.method.prepare(made.method.views(images, draws))
    step = lambda: trainer.train_step(made.forward, made.method, images, draws, made.optimiser, .5, recipe, made.scaler)
    step()  # the first one builds tables and moments

    def forbidden(self, *args): raise AssertionError('the step reads a number from the device')
    for wait in WAITS:
        monkeypatch.setattr(torch.Tensor, wait, forbidden)
    with Detector():
        losses = step()
    monkeypatch.undo()
    assert losses['loss'].isfinite()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', method_names())
def test_nothing_waits_for_the_gpu_between_log_points(name, tmp_path):
    recipe = replace(load_method(name).recipes['demo'], batch=16)
    made = Trainer(recipe, open_source('scenes:40', n=320), tmp_path, device='cuda', progress=False)
    batches = made.batches()

    def step():
        batch = next(batches)
        made.set_learning_rate()
        trainer.train_step(made.forward, made.method, batch.images, made.draws(made.step), made.optimiser, .5, recipe, made.scaler)
        made.step += 1
    for _ in range(3):  # moments, tables and kernels are made
        step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(5):
            step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
