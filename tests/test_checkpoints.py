"Runs that are killed again and again, full disks, folders in use, and what must not matter: clock, locale, number of workers"
import errno
import json
import locale
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mimrepro import checkpoints, processes
from mimrepro.checkpoints import damage, locked, newest_state, states, step_of, write_state
from mimrepro.data import open_source
from mimrepro.method import load_method, method_names, recipe_named
from mimrepro.trainer import Trainer

fork = multiprocessing.get_context('fork')  # what is imported here need not be imported again
MAE = dict(patch_size=8, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=16)


def tiny_mae(**changes):
    recipe = recipe_named('mae/demo')
    return replace(recipe, model={**recipe.model, **MAE}, **{'name': 'tiny', 'batch': 8, 'epochs': 3, 'warmup_epochs': 1, 'precision': 'fp32', **changes})


def mae_run(folder, n=32, **arguments):
    return Trainer(tiny_mae(), open_source('scenes:32', n=n), folder, 'cpu', progress=False, **{'log_every': 2, 'save_every': 3, **arguments})


def weights_of(run) -> dict:
    return load_file(Path(run) / 'model.safetensors')


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- a disk that is full

def limited(run, code):
    "Write a state in a process that may write no file above 100 kB: the system's own refusal"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        write_state(run, dict(step=2, loss=.5, w=torch.zeros(100_000)))
    except OSError as error:
        code.value = error.errno or ('File too large' in str(error) and 'state-000000001' in str(error))


def test_a_limit_of_the_system_keeps_the_states_before(tmp_path):
    before, code = write_state(tmp_path, dict(step=1, loss=1., w=torch.zeros(10))), fork.Value('i', 0)
    child = fork.Process(target=limited, args=(tmp_path, code))
    child.start()
    child.join()
    assert code.value == 1 and states(tmp_path) == [before] and damage(before) is None and not list(tmp_path.glob('*.part'))


@pytest.fixture
def small_disk(tmp_path):
    "A disk of half a megabyte"
    disk = tmp_path / 'disk'
    disk.mkdir()
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip('may not mount a disk here')
    yield disk
    subprocess.run(['umount', '-l', str(disk)])


def test_a_full_disk_stops_the_run_and_room_continues_it(tmp_path, small_disk):
    whole = mae_run(tmp_path / 'whole').fit().state_dict()
    run = small_disk / 'run'
    with pytest.raises(OSError, match=r'No space left on device.*states kept: state-.*Make room'):
        mae_run(run, keep=50).fit()
    assert states(run) and all(damage(path) is None for path in states(run))
    subprocess.run(['mount', '-o', 'remount,size=8m', str(small_disk)], check=True)
    assert same(mae_run(run).fit().state_dict(), whole) and step_of(states(run)[-1]) == 12


@pytest.mark.parametrize('at', [2, 5])
def test_a_disk_that_fills_during_a_run(tmp_path, monkeypatch, at):
    whole = mae_run(tmp_path / 'whole').fit().state_dict()
    write, files = checkpoints.Hashed.write, []

    def full(self, data):
        if self not in files: files.append(self)
        if len(files) == at: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)
    monkeypatch.setattr(checkpoints.Hashed, 'write', full)
    with pytest.raises(OSError, match='No space left on device'):
        mae_run(tmp_path / 'run').fit()
    monkeypatch.undo()
    assert newest_state(tmp_path / 'run')['step'] == 3 * (at - 2)
    assert same(mae_run(tmp_path / 'run').fit().state_dict(), whole)


# ---- states that are damaged

@pytest.mark.parametrize('harm', ['torn', 'flipped', 'empty', 'gone'])
def test_a_damaged_state_is_skipped_and_the_run_ends_the_same(tmp_path, harm):
    whole = mae_run(tmp_path / 'whole').fit().state_dict()
    trainer = mae_run(tmp_path / 'run')
    trainer.fit()
    (tmp_path / 'run' / 'model.safetensors').unlink()
    newest = states(tmp_path / 'run')[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 16
    {'torn': lambda: newest.write_bytes(content[:len(content) // 2]), 'flipped': lambda: newest.write_bytes(content),
     'empty': lambda: newest.write_bytes(b''), 'gone': newest.unlink}[harm]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        again = mae_run(tmp_path / 'run')
        assert same(again.fit().state_dict(), whole)
    said = [str(w.message) for w in caught if 'is skipped' in str(w.message)]
    assert len(said) == (harm != 'gone') and all(newest.name in text and 'checksum' in text for text in said)


# ---- one run per folder

def hold(run, ready, done):
    with locked(run):
        ready.set()
        done.wait(60)


def test_a_second_run_in_a_folder_is_refused_at_once_and_a_killed_one_leaves_no_lock(tmp_path):
    ready, done = fork.Event(), fork.Event()
    holder = fork.Process(target=hold, args=(tmp_path, ready, done))
    holder.start()
    assert ready.wait(60)
    start = time.perf_counter()
    second = mae_run(tmp_path)
    with pytest.raises(BlockingIOError, match=f'in use by process {holder.pid} on {socket.gethostname()}'):
        second.fit()
    assert time.perf_counter() - start < 30 and not (tmp_path / 'run.json').exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    second.fit()
    assert second.step == 12


# ---- killed at random moments

STEPS = 20


class Told:
    "A writer that tells another process how far the run is"
    def __init__(self, step): self.step = step
    def write(self, line): self.step.value = line['step']
    def close(self): pass


def member(rank, port, recipe, data, run, step, save_kill):
    "One of two processes; with `save_kill` the first kills itself at that write of a state"
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    write, count = checkpoints.Hashed.write, [0]

    def deadly(self, data):
        count[0] += 1
        if rank == 0 and count[0] == save_kill:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, data)
    checkpoints.Hashed.write = deadly
    try:
        with processes.process_group('cpu'):
            Trainer(recipe, open_source(data, n=32), run, 'cpu', workers=1, log_every=1, save_every=4, keep=STEPS, progress=False, writers=[Told(step)]).fit()
    except Exception:
        os._exit(1)
    os._exit(0)


def children(pid: int) -> list[int]:
    "Processes that a process started: its data workers"
    try:
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []


def together(recipe, data, run, kill=None, save_kill=0) -> bool:
    "Train in two processes, one of which, or a data worker, is killed by `kill(team, step)`; whether both ended well"
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    step = fork.Value('i', -1)
    team = [fork.Process(target=member, args=(rank, port, recipe, data, run, step, save_kill)) for rank in (0, 1)]
    for process in team:
        process.start()
    if kill:
        kill(team, step)
    while any(process.is_alive() for process in team):
        if any(process.exitcode not in (0, None) for process in team):  # what an elastic agent does
            for process in team:
                process.join(.2)
                process.kill()
        time.sleep(.02)
    return all(process.exitcode == 0 for process in team)


def killer(kind: str, at: int, rng: random.Random):
    "Kills a process, or a data worker, a moment after step `at`, wherever it is; `at` -1: while it starts"
    def kill(team, step):
        victims, pause = lambda: [process.pid for process in team if process.is_alive()], rng.uniform(0, .1 if at >= 0 else 2.)
        workers = lambda: [child for pid in victims() for child in children(pid)]
        while victims() and (step.value < at or kind == 'worker' and not workers()):
            time.sleep(.001)
        time.sleep(pause)
        if found := workers() if kind == 'worker' else victims():
            os.kill(rng.choice(found), signal.SIGKILL)
    return kill


def survive(name: str, folder: Path, kills: int, seed: int = 0) -> dict:
    "Kill a run until that many kills ended it; what was killed, and whether its weights are those of a run that was not"
    recipe = load_method(name).recipes['demo']
    recipe = replace(recipe, batch=16, epochs=STEPS // 2, warmup_epochs=1, precision='fp32')
    data, rng = f'scenes:{load_method(name).method(**recipe.model).crops[0].sides[0]}', random.Random(seed)
    assert together(recipe, data, folder / 'whole')
    counts, late, run = dict(process=0, saving=0, worker=0), 0, folder / 'run'
    while sum(counts.values()) < kills and late < kills:
        kind = ('process', 'saving', 'worker', 'process')[sum(counts.values()) % 4]
        done = step_of(states(run)[-1]) if run.exists() and states(run) else 0
        if kind == 'saving':
            ended = together(recipe, data, run, save_kill=rng.randint(1, 300))
        else:
            ended = together(recipe, data, run, killer(kind, rng.choice([-1, *range(done + 1, min(done + 7, STEPS))]), rng))
        if ended:  # it was faster than its killer: take its last states away
            late += 1
            for path in states(run)[rng.randint(1, 4):]:
                path.unlink()
        else:
            counts[kind] += 1
    assert together(recipe, data, run)
    steps = [json.loads(line)['step'] for line in open(run / 'metrics.jsonl')]
    assert steps == list(range(1, STEPS + 1))
    return dict(counts, late=late, equal=same(weights_of(run), weights_of(folder / 'whole')))


def test_four_kills_of_two_processes_leave_no_trace(tmp_path):
    found = survive('mae', tmp_path, 4)
    print(found)
    assert found['equal'] and (found['process'], found['saving'], found['worker']) == (2, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize('name', method_names())
def test_twenty_kills_of_two_processes_leave_no_trace(name, tmp_path):
    found = survive(name, tmp_path, 20, seed=1)
    print(name, found)
    assert found['equal'] and (found['process'], found['saving'], found['worker']) == (10, 5, 5)


# ---- a long run

@pytest.mark.slow
def test_a_hundred_thousand_steps_in_flat_memory(tmp_path):
    "What a day-long run does: memory and files do not grow, and a resume is quick"
    recipe = tiny_mae(epochs=25_000, warmup_epochs=10)
    data = open_source('scenes:32', n=32)
    seen = []

    class Watch:
        def write(self, line):
            if line['step'] % 5000 == 0:
                rss = int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20
                files = {path.name.split('-')[0]: path.stat().st_size for path in tmp_path.iterdir()}
                seen.append(dict(step=line['step'], rss=rss, files=len(list(tmp_path.iterdir())), **files))
                print(seen[-1], flush=True)
        def close(self): pass
    Trainer(recipe, data, tmp_path, 'cpu', progress=False, log_every=1000, save_every=5000, writers=[Watch()]).fit()
    assert seen[-1]['step'] == 100_000 and max(s['rss'] for s in seen[2:]) < seen[1]['rss'] + 30
    assert max(s['files'] for s in seen) <= 8 and max(s['state'] for s in seen) == min(s['state'] for s in seen[1:])
    start = time.perf_counter()
    Trainer(recipe, data, tmp_path, 'cpu', progress=False).fit()
    assert time.perf_counter() - start < 5


# ---- what must not matter

def test_a_clock_that_jumps_changes_no_weight(tmp_path, monkeypatch):
    whole = mae_run(tmp_path / 'whole').fit().state_dict()
    times = iter(range(10**9, 0, -3600))
    for clock in ('time', 'perf_counter'):
        monkeypatch.setattr(f'mimrepro.trainer.time.{clock}', lambda: float(next(times)))
    ended = mae_run(tmp_path / 'run').fit().state_dict()
    monkeypatch.undo()
    assert same(ended, whole)
    assert all(json.loads(line)['images_per_second'] > 0 for line in open(tmp_path / 'run/metrics.jsonl'))


def test_the_number_of_workers_changes_no_weight(tmp_path):
    one, *others = [mae_run(tmp_path / str(workers), workers=workers).fit().state_dict() for workers in (0, 1, 3)]
    assert all(same(one, other) for other in others)


def test_a_locale_changes_no_file(tmp_path, monkeypatch):
    mae_run(tmp_path / 'whole').fit()
    before = locale.setlocale(locale.LC_ALL)
    for name in ('de_DE.UTF-8', 'tr_TR.UTF-8', 'C'):
        try:
            locale.setlocale(locale.LC_ALL, name)
            break
        except locale.Error:
            continue
    monkeypatch.setenv('TZ', 'Asia/Kathmandu')
    time.tzset()
    try:
        mae_run(tmp_path / 'run').fit()
    finally:
        locale.setlocale(locale.LC_ALL, before)
        monkeypatch.undo()
        time.tzset()
    assert same(weights_of(tmp_path / 'run'), weights_of(tmp_path / 'whole'))
    assert [json.loads(line)['loss'] for line in open(tmp_path / 'run/metrics.jsonl')] == [json.loads(line)['loss'] for line in open(tmp_path / 'whole/metrics.jsonl')]
