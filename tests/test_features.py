"Frozen features against independent implementations, and collections that do not fit into memory"
import os
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from mimrepro.data import open_source
from mimrepro.features import few_labels, fit_logistic, knn, quick_probe, read
from mimrepro.protocols import find_protocols, protocol_named
from mimrepro.vit import Encoder

DATA = os.environ.get('MIMREPRO_DATA')
FIRST_CLASS = ['n01629819_232.JPEG', 'n01629819_291.JPEG', 'n01629819_313.JPEG', 'n01629819_59.JPEG', 'n01629819_71.JPEG']  # the part of 1 % is fixed
needs_data = pytest.mark.skipif(not DATA, reason='set MIMREPRO_DATA to the folder of the real images')


@pytest.fixture(scope='module')
def cached():
    "Features and classes of 1,500 and 600 scenes by an encoder that was never trained"
    torch.manual_seed(0)
    encoder = Encoder(32, 8, embed_dim=48, depth=2, num_heads=4)
    return [part for split, n in (('train', 1500), ('test', 600)) for part in read(encoder, open_source('scenes:32', split, n=n))]


@pytest.mark.parametrize('l2', [1e-3, 1e-1])
def test_the_linear_probe_is_scikit_learns(cached, l2):
    train, y, test, y_test = cached
    scale = StandardScaler().fit(train)
    oracle = LogisticRegression(C=1 / (l2 * len(train)), max_iter=2000, tol=1e-6).fit(scale.transform(train), y)
    assert abs(quick_probe(train, y, test, y_test, l2) - 100 * oracle.score(scale.transform(test), y_test)) < .5


def test_knn_is_scikit_learns(cached):
    train, y, test, y_test = cached
    for k in (1, 7):
        oracle = KNeighborsClassifier(k, metric='cosine').fit(train, y)
        assert abs(knn(train, y, test, y_test, k, None) - 100 * oracle.score(test, y_test)) < .5  # ties may fall either way
    weighted = KNeighborsClassifier(20, metric='cosine', weights=lambda d: torch.exp(torch.as_tensor(-d) / .07).numpy()).fit(train, y)
    assert abs(knn(train, y, test, y_test, 20, .07) - 100 * weighted.score(test, y_test)) < .2


@needs_data
def test_the_linear_probe_is_scikit_learns_on_real_images():
    encoder = Encoder(32, 16, embed_dim=32, depth=1, num_heads=4)
    (train, y), (test, y_test) = (read(encoder, open_source(Path(DATA) / f'cifar10-small-{split}.tar.gz')) for split in ('train', 'test'))
    train, y = train[::10], y[::10]
    scale = StandardScaler().fit(train)
    oracle = LogisticRegression(C=1 / (1e-3 * len(train)), max_iter=500).fit(scale.transform(train), y)
    assert abs(quick_probe(train, y, test, y_test) - 100 * oracle.score(scale.transform(test), y_test)) < .5


@needs_data
def test_few_labels_of_tiny_imagenet_are_the_same_everywhere():
    source = open_source(Path(DATA) / 'tiny-imagenet-50a-train.tar.gz')
    one, ten = few_labels(source, .01), few_labels(source, .1)
    assert (len(one), len(ten)) == (250, 2500) and set(one.tolist()) < set(ten.tolist())
    assert torch.bincount(source.labels[one]).tolist() == [5] * 50
    assert sorted(Path(source.file(int(i))).name for i in one if source.labels[i] == 0) == FIRST_CLASS


def test_every_protocol_can_be_described():
    for name, protocol in find_protocols().items():
        assert len(protocol.about) > 10 and protocol_named(name) is protocol
        assert protocol.branch in ('student', 'momentum')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_probe_on_a_gpu_answers_the_same():
    x, y = torch.randn(200, 8), torch.randint(0, 3, (200,))
    here, there = fit_logistic(x, y, 3), fit_logistic(x.cuda(), y.cuda(), 3)
    assert all(torch.allclose(a, b.cpu(), atol=1e-3) for a, b in zip(here, there))
