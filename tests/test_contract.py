"What every method promises, tested for each that the package finds: a new one passes here without an edit"
import copy
import warnings
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mimrepro.data import open_source
from mimrepro.method import build, load_method, method_names, parameter_groups
from mimrepro.trainer import Trainer, autocast
from mimrepro.twins import COLLAPSED
from mimrepro.vit import LN_EPS
from mimrepro.weights import export_timm

METHODS = method_names()


def prepared(name: str, n: int = 4, size: str = 'demo', **changes):
    "A method of demo size, or of another recipe's, with the views and draws of one batch"
    recipe = load_method(name).recipes[size]
    torch.manual_seed(0)
    method = build(replace(recipe, model={**recipe.model, **changes}))
    images = torch.randint(0, 256, (n, len(method.crops), 3, *method.crops[0].sides), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    draws = method.draw(n, torch.Generator().manual_seed(2))
    views = method.views(images, draws)
    method.prepare(views)
    return method, images, draws, views


@pytest.mark.parametrize('name', METHODS)
def test_draws(name):
    "One row per image, the same for the same seed"
    method, images, draws, _ = prepared(name)
    assert all(len(d) == 4 for d in draws.values())
    again = method.draw(4, torch.Generator().manual_seed(2))
    assert draws.keys() == again.keys() and all(torch.equal(d, again[k]) for k, d in draws.items())
    other = method.draw(4, torch.Generator().manual_seed(3))
    assert any(not torch.equal(d, other[k]) for k, d in draws.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', METHODS)
def test_draws_are_made_on_the_device_of_the_generator(name):
    method = prepared(name)[0].cuda()
    draws = method.draw(4, torch.Generator('cuda').manual_seed(0))
    assert all(d.device.type == 'cuda' for d in draws.values())
    images = torch.randint(0, 256, (4, len(method.crops), 3, *method.crops[0].sides), dtype=torch.uint8, device='cuda')
    assert method(method.views(images, draws), draws).loss.isfinite()


@pytest.mark.parametrize('name', METHODS)
def test_forward_is_a_function_of_views_and_draws(name):
    method, _, draws, views = prepared(name)
    twin, state = copy.deepcopy(method), torch.get_rng_state()
    method.before_step(0.)
    step = method(views, draws)
    step.loss.backward()
    method.after_step(0.)
    assert torch.equal(state, torch.get_rng_state()), 'forward drew a random number of its own'
    assert step.loss.isfinite() and step.loss.ndim == 0 and step.parts and all(part.ndim == 0 for part in step.parts.values())
    silent = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f'trainable weights that take no part in the loss: {silent}'
    twin.before_step(0.)
    assert torch.equal(step.loss, twin(views, draws).loss)


@pytest.mark.parametrize('name', METHODS)
def test_a_state_that_is_saved_and_loaded_gives_the_same_loss(name):
    method, _, draws, views = prepared(name)
    other = build(replace(load_method(name).recipes['demo'], seed=5))
    other.load_state_dict(method.state_dict())
    assert torch.equal(method(views, draws).loss, other(views, draws).loss)


@pytest.mark.parametrize('name', METHODS)
def test_the_forward_pass_is_one_graph(name):
    method, _, draws, views = prepared(name)
    whole = torch.compile(method, backend='eager', fullgraph=True)
    torch.testing.assert_close(whole(views, draws).loss, copy.deepcopy(method)(views, draws).loss)


@pytest.mark.parametrize('name', METHODS)
def test_bf16_moves_the_loss_by_less_than_two_percent(name):
    method, _, draws, views = prepared(name)
    full = method(views, draws).loss
    with autocast(torch.device('cpu'), 'bf16'):
        half = method(views, draws).loss
    assert half.dtype == torch.float32
    assert abs(half - full) / full < .02


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('size', [(32, 48), (36, 44)], ids=['8x12', '9x11'])
def test_other_grids_work_or_are_refused_with_their_name(name, size):
    try:
        method, _, draws, views = prepared(name, img_size=size)
    except ValueError as error:
        assert 'x'.join(str(side // 4) for side in size) in str(error) or 'x'.join(map(str, size)) in str(error), error
        return
    step = method(views, draws)
    step.loss.backward()
    assert step.loss.isfinite() and method.encoder(next(iter(views.values()))[:, :, :size[0], :size[1]]).isfinite().all()


@pytest.mark.parametrize('name', METHODS)
def test_thirty_steps_on_one_batch_reduce_every_part_of_the_loss(name):
    method, _, draws, views = prepared(name, 8)
    optimiser = torch.optim.AdamW(parameter_groups(method, .05), lr=1e-3, betas=(.9, .95))
    curve = []
    for i in range(30):
        method.before_step(i / 30)
        step = method(views, draws)
        step.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        method.after_step(i / 30)
        curve.append({part: value.item() for part, value in step.parts.items()})
    assert all(curve[-1][part] < curve[0][part] for part in curve[0]), (curve[0], curve[-1])


def gradients(method) -> dict:
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


def one_of_two(rank: int, folder: str):
    "A process with half of the batch"
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    found = {}
    for name in METHODS:
        method, images, draws, _ = prepared(name, 8)
        mine = slice(4 * rank, 4 * rank + 4)
        draws = {k: d[mine] for k, d in draws.items()}
        method.before_step(.5)
        step = method(method.views(images[mine], draws), draws)
        step.loss.backward()
        shared = gradients(method) | {'loss': step.loss.detach()}
        for value in shared.values():
            dist.all_reduce(value)
        method.after_step(.5)
        found[name] = {n: value / 2 for n, value in shared.items()} | {n: b.clone() for n, b in method.named_buffers()}
    if rank == 0:
        torch.save(found, f'{folder}/found.pt')
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    "Negatives and batch statistics are those of the global batch, and gradients are too"
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / 'found.pt')
    for name in METHODS:
        method, images, draws, views = prepared(name, 8)
        method.before_step(.5)
        step = method(views, draws)
        step.loss.backward()
        method.after_step(.5)
        wanted = gradients(method) | {'loss': step.loss.detach()} | dict(method.named_buffers())
        assert wanted.keys() == found[name].keys()
        for n, value in wanted.items():
            torch.testing.assert_close(found[name][n], value, atol=3e-5, rtol=1e-3, msg=lambda text: f'{name} {n}: {text}')


@pytest.mark.parametrize('name', METHODS)
def test_healthy_embeddings_are_spread(name):
    method, _, draws, views = prepared(name, 8)
    for value in method(views, draws).watch.values():
        assert value.ndim == 0 and value > COLLAPSED


@pytest.mark.parametrize('name', METHODS)
def test_recipes_say_whose_they_are(name):
    for key, recipe in load_method(name).recipes.items():
        assert recipe.source and recipe.method == name and recipe.name == f'{name}/{key}'


@pytest.mark.parametrize('name, arguments, collapses', [
    ('extrema', {}, False), ('extrema', dict(momentum=0.), True), ('lcmae', {}, False), ('lcmae', dict(momentum=None), True), ('lcmae', dict(predictor_depth=0), True)])
def test_the_trainer_warns_of_a_collapse(name, arguments, collapses, tmp_path):
    "Without its predictor or its slow copy a method that only asks for agreement lets all images look alike"
    recipe = load_method(name).recipes['demo']
    small = dict(img_size=16, embed_dim=48, depth=2, num_heads=2)
    recipe = replace(recipe, model={**recipe.model, **small, **arguments}, batch=32, epochs=1, warmup_epochs=0., base_lr=16 * recipe.base_lr, precision='fp32')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        Trainer(recipe, open_source('scenes:24', n=32 * 60), tmp_path / 'run', 'cpu', progress=False, log_every=10).fit()
    assert any('the embeddings have collapsed at step' in str(w.message) for w in caught) == collapses


@pytest.mark.parametrize('name, size', [*((name, 'demo') for name in METHODS), ('localmim', 'swin-small')])
def test_the_encoder_goes_to_timm_and_gives_the_same_features(name, size, tmp_path):
    method = prepared(name, size=size)[0].eval()
    export_timm(method.encoder, tmp_path / 'timm')
    theirs = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True, norm_layer=partial(torch.nn.LayerNorm, eps=LN_EPS)).eval()  # timm's Swin has 1e-5
    x = torch.randn(2, 3, *method.encoder.img_size)
    ours, patches = {}, theirs.forward_features(x)
    patches = patches.flatten(1, -2)  # a Swin's are a map
    hook = method.encoder.blocks[-1].register_forward_hook(lambda module, inputs, output: ours.setdefault('last', output))
    ours['final'] = method.encoder(x)
    hook.remove()
    wanted = ours['final' if ours['final'].shape == patches.shape else 'last']  # ExtreMA's tokens have no norm of their own
    torch.testing.assert_close(patches, wanted, atol=2e-5, rtol=1e-4)
