"""The heads' equations, against formulas written out class by class; no encoder is involved."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from models.db_achmcnn.db_achmcnn import CHMCNN
from models.db_ahmcnf.db_ahmcnf import HMCNF, Flows
from models.db_bhcn.db_bhcn import BHCN
from models.db_bhcn_awx.db_bhcn_awx import AWX, BHCNAWX, STEEPEST
from models.db_linear.db_linear import Linear
from models.heads import TreePool, log_sigmoid, target_matrix
from models.model_pytorch import Head
from tests.support.tiny import random_tree
from utils.hierarchy.decode import decode
from utils.hierarchy.tree import Hierarchy

WIDTH = 12
HEADS: list[type[Head]] = [BHCN, BHCNAWX, HMCNF, CHMCNN, Linear]
SIGMOIDS: list[type[Head]] = [BHCNAWX, HMCNF, CHMCNN]
SMALL = {
    HMCNF: {"global_hidden_dim": 10, "local_hidden_dim": 8},
    CHMCNN: {"h_hidden_dim": 10},
}


def make_head(cls: type[Head], tree: Hierarchy, **values: Any) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return cls(WIDTH, tree, cls.Config(**{**SMALL.get(cls, {}), **values}))


def make_tree(seed: int, depth: int = 4) -> Hierarchy:
    return random_tree(np.random.default_rng(seed), depth=depth, rows=300)[0].full_depth()


def wide_tree(*sizes: int) -> Hierarchy:
    """Every class has a child; the first one of each level has half of those that are left."""
    rng = np.random.default_rng(0)
    names = [[f"{level}.{place}" for place in range(size)] for level, size in enumerate(sizes)]
    parents = [np.zeros(sizes[0], dtype=np.int32)]
    for above, size in itertools.pairwise(sizes):
        more = rng.integers(0, above, size - above) * rng.integers(0, 2, size - above)
        parents.append(rng.permutation(np.concatenate([np.arange(above), more])).astype(np.int32))
    return Hierarchy.from_parents(names, parents)


def rows_of(tree: Hierarchy, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random features and codes of random full-depth paths."""
    rng = np.random.default_rng(seed)
    paths = tree.path_codes[tree.level_slice(tree.depth - 1)]
    codes = paths[rng.integers(0, len(paths), count)]
    features = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(codes).long()


def targets_of(tree: Hierarchy, codes: Tensor) -> Tensor:
    offsets = torch.from_numpy(tree.level_offsets[:-1])
    return target_matrix(codes, offsets, tree.class_count).double()


def descendants(tree: Hierarchy) -> Tensor:
    """Dense, (classes, classes): whether j is i or below it."""
    below = torch.zeros(tree.class_count, tree.class_count, dtype=torch.bool)
    for node in range(tree.class_count):
        below[torch.from_numpy(tree.ancestors(node)).long(), node] = True
    return below


def leaves_below(tree: Hierarchy) -> Tensor:
    """Dense, (classes, last-level classes)."""
    return descendants(tree)[:, tree.level_slice(tree.depth - 1)]


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss.sum(), at)
    return found


# -- pooling over the tree ----------------------------------------------------------------

TREES = {
    "random": make_tree(0),
    "deep": make_tree(1, depth=6),
    "wide": wide_tree(2, 9, 300),
    "one root": wide_tree(1, 1, 5),
    "one level": wide_tree(4),
    "one class": wide_tree(1),
}


@pytest.fixture(params=sorted(TREES))
def tree(request: pytest.FixtureRequest) -> Hierarchy:
    return TREES[request.param]


def test_targets_are_the_classes_on_the_path(tree: Hierarchy) -> None:
    _, codes = rows_of(tree, 9)
    targets = targets_of(tree, codes)
    for row, path in zip(targets, codes, strict=True):
        leaf = int(tree.level_offsets[-2] + path[-1])
        assert row.nonzero().ravel().tolist() == tree.ancestors(leaf).tolist()
    assert set(targets.unique().tolist()) <= {0.0, 1.0}


def test_maximum_is_that_over_all_descendants(tree: Hierarchy) -> None:
    values = torch.randn(5, tree.class_count, dtype=torch.double, requires_grad=True)
    dense = values[:, None].expand(-1, tree.class_count, -1)
    want = dense.masked_fill(~descendants(tree), -torch.inf).amax(2)
    have = TreePool(tree).maximum(values)
    torch.testing.assert_close(have, want, rtol=0, atol=0)
    weights = torch.rand_like(want)
    torch.testing.assert_close(gradient(have * weights, values), gradient(want * weights, values))


def test_leaf_sum_and_maximum_are_those_over_all_leaves(tree: Hierarchy) -> None:
    values = torch.randn(5, tree.level_sizes[-1], dtype=torch.double, requires_grad=True)
    below, pool = leaves_below(tree), TreePool(tree)
    dense = values[:, None].expand(-1, tree.class_count, -1)
    pairs = (
        (pool.leaf_sum(values), values @ below.double().T),
        (pool.leaf_maximum(values), dense.masked_fill(~below, -torch.inf).amax(2)),
    )
    for have, want in pairs:
        torch.testing.assert_close(have, want)
        weights = torch.rand_like(want)
        torch.testing.assert_close(
            gradient(have * weights, values), gradient(want * weights, values)
        )


def test_pooling_keeps_little_beside_the_tree(tree: Hierarchy) -> None:
    pool = TreePool(tree)
    assert sum(buffer.numel() for buffer in pool.buffers()) <= 4 * tree.class_count
    assert pool.state_dict() == {}


# -- C-HMCNN ------------------------------------------------------------------------------


def dense_mcloss(logits: Tensor, targets: Tensor, tree: Hierarchy) -> Tensor:
    """The paper's loss by its formula, with a (batch, classes, classes) cube."""
    below = descendants(tree).double()
    f = logits.sigmoid()
    answer = (f[:, None] * below).amax(2)
    true_answer = ((targets * f)[:, None] * below).amax(2)
    mixed = (1 - targets) * answer + targets * true_answer
    return functional.binary_cross_entropy(mixed, targets, reduction="none").mean(1)


@pytest.mark.parametrize("paths", [1, 3])
def test_mcloss_is_the_dense_formula(tree: Hierarchy, paths: int) -> None:
    head = make_head(CHMCNN, tree)
    logits = 3 * torch.randn(6, tree.class_count, dtype=torch.double)
    logits.requires_grad_()
    targets = sum(targets_of(tree, rows_of(tree, 6, seed)[1]) for seed in range(paths))
    assert isinstance(targets, Tensor)
    targets = targets.clamp(max=1)
    have, want = head.loss_on_targets(logits, targets), dense_mcloss(logits, targets, tree)
    torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        gradient(have, logits), gradient(want, logits), rtol=1e-9, atol=1e-12
    )


def test_mcm_is_the_answer() -> None:
    tree = TREES["random"]
    head = make_head(CHMCNN, tree).eval()
    logits = head(rows_of(tree, 5)[0])
    want = (logits.sigmoid()[:, None] * descendants(tree)).amax(2)
    torch.testing.assert_close(head.scores(logits).exp(), want)


def test_a_bad_child_is_not_rewarded_for_its_parent() -> None:
    """Whatever is below a true class: only true classes may be pushed up, false ones only down."""
    tree = TREES["random"]
    head = make_head(CHMCNN, tree)
    for seed in range(5):
        targets = targets_of(tree, rows_of(tree, 8, seed)[1])
        logits = torch.randn(8, tree.class_count, dtype=torch.double, requires_grad=True)
        found = gradient(head.loss_on_targets(logits, targets), logits)
        assert (found[targets == 0] >= 0).all()
        assert (found[targets == 1] <= 0).all()
        assert (found[targets == 1] < 0).any()
    # not so with a plain BCE over the answer, the mistake that the loss is made against
    answer = head.pool.maximum(logits - 4)
    plain = functional.binary_cross_entropy_with_logits(answer, targets, reduction="none")
    assert (gradient(plain, logits)[targets == 0] < 0).any()


def test_layers_of_chmcnn_are_as_many_as_configured() -> None:
    tree = TREES["random"]
    for count in (1, 2, 3):
        head = make_head(CHMCNN, tree, h_layer_count=count, h_hidden_dim=7)
        shapes = [layer.weight.shape for layer in head.layers if isinstance(layer, nn.Linear)]
        assert len(shapes) == count
        assert shapes[-1] == (tree.class_count, 7 if count > 1 else WIDTH)


# -- AWX ----------------------------------------------------------------------------------


def formula(raw: Tensor, tree: Hierarchy, norm: int) -> Tensor:
    """AWX by its formula, class by class."""
    leaves = raw.sigmoid()
    classes = []
    for below in leaves_below(tree):
        mine = leaves[:, below]
        if norm > 1:
            classes.append((mine**norm).sum(1).clamp(1e-6, 1 - 1e-6) ** (1 / norm))
        elif norm == 1:
            classes.append(mine.sum(1).clamp(max=1 - 1e-4))
        else:
            classes.append(mine.amax(1))
    return torch.stack(classes, 1)


def raw_outputs(tree: Hierarchy, shift: float, spread: float = 2.0) -> Tensor:
    draw = torch.randn(6, tree.level_sizes[-1], dtype=torch.double)
    return (spread * draw + shift).requires_grad_()


@pytest.mark.parametrize("norm", [5, 2, 1, 0, -3])
@pytest.mark.parametrize("shift", [-4.0, 0.0, 3.0])
def test_awx_is_its_formula(tree: Hierarchy, norm: int, shift: float) -> None:
    awx, raw = AWX(tree, norm), raw_outputs(tree, shift)
    want = formula(raw, tree, norm)
    torch.testing.assert_close(awx.clip(awx(raw)).exp(), want, rtol=1e-9, atol=1e-12)
    targets = targets_of(tree, rows_of(tree, 6)[1])
    bce = functional.binary_cross_entropy(want, targets, reduction="none").mean(1)
    torch.testing.assert_close(awx.bce(raw, targets), bce, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", [5, 2, 1, 0])
def test_awx_has_its_formulas_gradient_where_nothing_is_clipped(norm: int) -> None:
    tree = wide_tree(3, 4, 6)
    awx, raw = AWX(tree, norm), raw_outputs(tree, -1.9 if norm == 1 else -1.0, 0.1)
    targets = targets_of(tree, rows_of(tree, 6)[1])
    dense = functional.binary_cross_entropy(formula(raw, tree, norm), targets, reduction="none")
    torch.testing.assert_close(
        gradient(awx.bce(raw, targets), raw), gradient(dense.mean(1), raw), rtol=1e-7, atol=1e-9
    )


def test_awx_learns_where_its_formula_is_dead() -> None:
    tree = wide_tree(2, 80)
    awx, below = AWX(tree, 5), leaves_below(tree)
    _, codes = rows_of(tree, 6)
    targets = targets_of(tree, codes)
    below_floor = torch.full((6, 80), -4.0, dtype=torch.double, requires_grad=True)
    assert not gradient(formula(below_floor, tree, 5), below_floor).any()
    found = gradient(awx.bce(below_floor, targets), below_floor)
    true_leaves = found.gather(1, codes[:, -1:])
    assert (true_leaves * tree.class_count < -0.9).all()
    at_start = torch.zeros(6, 80, dtype=torch.double, requires_grad=True)
    crowded = int(below[:2].sum(1).argmax())
    assert not gradient(formula(at_start, tree, 5)[:, crowded], at_start).any()
    others = targets.clone()
    others[:, :] = 0
    pushed = gradient(awx.bce(at_start, others), at_start)
    total = (pushed * tree.class_count)[:, below[crowded]].sum(1)
    assert (total > 1).all()
    assert (total < STEEPEST + 80).all()


def test_awx_sends_no_gradient_that_is_out_of_bounds() -> None:
    tree = wide_tree(1, 50)
    awx = AWX(tree, 5)
    for value in np.linspace(-30, 30, 121):
        raw = torch.full((1, 50), float(value), requires_grad=True)
        for true in (0.0, 1.0):
            targets = torch.full((1, 51), true)
            loss = awx.bce(raw, targets)
            found = gradient(loss, raw) * tree.class_count
            assert torch.isfinite(loss).all()
            assert torch.isfinite(found).all()
            assert found.abs().sum() <= STEEPEST + 50 + 0.1


def test_awx_starts_between_floor_and_ceiling() -> None:
    tree = wide_tree(1, 3, 400)
    head = make_head(BHCNAWX, tree, dropout=0.0)
    raw = head.levels[-1].bias.detach()[None]
    top = head.awx.clip(head.awx(raw)).exp()[0, 0]
    assert 0.5 < top < 0.99
    assert formula(torch.zeros(1, 400), tree, 5)[0, 0] > 1 - 1e-6  # as it would start otherwise


def test_loss_of_awx_is_the_one_of_the_design() -> None:
    tree = TREES["random"]
    head = make_head(BHCNAWX, tree, gamma_l=-0.2, lambda_l=0.6, awx_norm=5).double().eval()
    features, codes = rows_of(tree, 9)
    outputs = head(features.double())
    weights = 1 - np.linspace(0.2, -0.2, tree.depth)
    for row in range(9):
        answer = formula(outputs[-1][row : row + 1], tree, 5)
        want = functional.binary_cross_entropy(answer, targets_of(tree, codes)[row : row + 1])
        for h, level in enumerate(outputs):
            want = want - 0.6 * weights[h] * level[row].log_softmax(0)[codes[row, h]]
        assert head.loss(outputs, codes)[row].item() == pytest.approx(want.item(), rel=1e-4)


def test_scores_of_awx_tell_apart_what_is_clipped_and_are_else_its_log() -> None:
    tree = wide_tree(3, 4, 6)
    head = make_head(BHCNAWX, tree)
    raw = torch.tensor([[-9.0, -8.0, -7.0, -6.0, -5.0, -4.0]])
    scores = head.scores([raw])
    assert scores[0, -6:].diff().min() > 0
    want = formula(raw, tree, 5).log()
    torch.testing.assert_close(scores, want, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("cls", "norm"), [(CHMCNN, None), (BHCNAWX, 0), (BHCNAWX, 5)])
def test_no_class_is_less_probable_than_one_below_it(cls: type[Head], norm: int | None) -> None:
    for seed in range(3):
        tree = make_tree(seed, depth=5)
        head = make_head(cls, tree, **({} if norm is None else {"awx_norm": norm})).eval()
        scores = head.scores(head(5 * rows_of(tree, 20, seed)[0]))
        children = slice(tree.level_sizes[0], None)
        parents = torch.from_numpy(tree.parents_global[children]).long()
        assert (scores[:, parents] - scores[:, children] >= -1e-6).all()


# -- HMCN-F -------------------------------------------------------------------------------


def test_violation_is_right_at_depth_five() -> None:
    tree = make_tree(3, depth=5)
    assert tree.depth == 5
    head = make_head(HMCNF, tree, global_weight=0.3)
    flows = Flows(*(torch.randn(4, tree.class_count, dtype=torch.double) for _ in range(2)))
    answer = 0.3 * flows.whole.sigmoid() + 0.7 * flows.local.sigmoid()
    edges = [
        (child, int(tree.ancestors(child)[-2]))
        for child in range(tree.level_sizes[0], tree.class_count)
    ]
    for row in range(4):
        terms = [max(0.0, float(answer[row, n] - answer[row, p])) ** 2 for n, p in edges]
        assert head.violation(flows)[row].item() == pytest.approx(np.mean(terms), rel=1e-9)
    assert head.violation(flows).min() > 0


def test_loss_of_hmcnf_is_the_published_one() -> None:
    tree = make_tree(3, depth=5)
    head = make_head(HMCNF, tree, lambda_h=2.0)
    flows = Flows(*(torch.randn(4, tree.class_count) for _ in range(2)))
    _, codes = rows_of(tree, 4)
    targets = targets_of(tree, codes).float()
    bce = functional.binary_cross_entropy
    for row in range(4):
        want = bce(flows.whole[row].sigmoid(), targets[row]).item()
        for h in range(tree.depth):
            here = tree.level_slice(h)
            want += bce(flows.local[row, here].sigmoid(), targets[row, here]).item()
        want += 2.0 * head.violation(flows)[row].item()
        assert head.loss(flows, codes)[row].item() == pytest.approx(want, rel=1e-5)


def test_flows_of_hmcnf_are_those_of_the_equations() -> None:
    tree = TREES["random"]
    head = make_head(HMCNF, tree).eval()
    x, _ = rows_of(tree, 4)

    def layer(part: nn.Sequential, inputs: Tensor) -> Tensor:
        linear = inputs @ part[0].weight.T + part[0].bias
        mean, var = linear.mean(1, keepdim=True), linear.var(1, correction=0, keepdim=True)
        return ((linear - mean) / (var + 1e-5).sqrt()).clamp(min=0)

    hidden = layer(head.flow[0], x)
    local = []
    for h in range(tree.depth):
        hidden = layer(head.flow[h], torch.cat([hidden, x], 1)) if h else hidden
        last = head.local[h][1]
        local.append(layer(head.local[h][0], hidden) @ last.weight.T + last.bias)
    whole = torch.cat([hidden, x], 1) @ head.whole.weight.T + head.whole.bias
    torch.testing.assert_close(head(x), Flows(whole, torch.cat(local, 1)))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_scores_of_hmcnf_are_the_log_of_the_mix(share: float) -> None:
    tree = TREES["random"]
    head = make_head(HMCNF, tree, global_weight=share).eval()
    flows = head(rows_of(tree, 5)[0])
    want = share * flows.whole.sigmoid() + (1 - share) * flows.local.sigmoid()
    torch.testing.assert_close(head.scores(flows).exp(), want)


# -- all heads ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", HEADS)
def test_a_rows_loss_depends_on_that_row_alone(cls: type[Head]) -> None:
    tree = TREES["random"]
    head = make_head(cls, tree).eval()
    features, codes = rows_of(tree, 7)
    whole = head.loss(head(features), codes)
    assert whole.shape == (7,)
    for row in range(7):
        alone = head.loss(head(features[row : row + 1]), codes[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1])


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_all_is_finite_on_odd_trees_and_extreme_features(
    cls: type[Head], scale: float, tree: Hierarchy
) -> None:
    head = make_head(cls, tree)
    features, codes = rows_of(tree, 5)
    outputs = head(scale * features)
    loss = head.loss(outputs, codes)
    loss.mean().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(head.scores(outputs)).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("cls", SIGMOIDS)
def test_sigmoid_losses_take_several_paths_per_row(cls: type[Head]) -> None:
    tree = TREES["random"]
    head = make_head(cls, tree, dropout=0.0)
    features, first = rows_of(tree, 8)
    targets = targets_of(tree, first).maximum(targets_of(tree, rows_of(tree, 8, 1)[1])).float()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(150):
        loss = head.loss_on_targets(head(features), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = head.scores(head(features))[:, tree.level_slice(tree.depth - 1)]
    for row, true in zip(scores, targets[:, tree.level_slice(tree.depth - 1)], strict=True):
        assert row[true > 0].min() > row[true == 0].max()


@pytest.mark.parametrize("cls", HEADS)
def test_learns_from_plain_features(cls: type[Head]) -> None:
    """Features that tell the leaf, and no encoder: the head gets every row right."""
    hierarchy = random_tree(np.random.default_rng(2), rows=10)[0]
    tree = hierarchy.full_depth()
    head = make_head(cls, tree, dropout=0.0)
    leaves = tree.level_sizes[-1]
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        features = torch.randn(leaves, WIDTH)
    codes = torch.from_numpy(tree.path_codes[tree.level_slice(tree.depth - 1)]).long()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(head(features), codes).mean().backward()
        optimizer.step()
    scores = head.eval().scores(head(features)).detach().numpy()
    found = decode(scores, hierarchy, tree)
    assert (found.top[:, 0] == np.arange(leaves)).mean() == 1.0


class Largest(TorchDispatchMode):
    """Remembers the most cells that any tensor had."""

    cells = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else (found,):
            if isinstance(part, Tensor):
                # expanded views have no cells of their own
                self.cells = max(self.cells, part.untyped_storage().nbytes() // part.itemsize)
        return found


@pytest.mark.parametrize("cls", HEADS)
def test_no_tensor_grows_with_pairs_of_classes(cls: type[Head]) -> None:
    tree, batch = wide_tree(3, 30, 3000), 4
    classes = tree.class_count
    head = make_head(cls, tree)
    features, codes = rows_of(tree, batch)
    with Largest() as largest:
        outputs = head(features)
        head.loss(outputs, codes).mean().backward()
        head.scores(outputs)
    weights = max(parameter.numel() for parameter in head.parameters())
    assert largest.cells <= max(weights, 5 * batch * classes)
    assert weights <= (30 + WIDTH + 1) * classes
    assert sum(buffer.numel() for buffer in head.buffers()) <= 6 * classes
    assert set(head.state_dict()) == {name for name, _ in head.named_parameters()}


class Scores(nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        return self.head.scores(self.head(features))


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("cls", HEADS)
def test_exported_scores_are_the_heads(cls: type[Head], opset: int, tmp_path: Path) -> None:
    from utils.inference.onnx_scorer import open_session

    tree = TREES["deep"]
    module = Scores(make_head(cls, tree)).eval()
    path = tmp_path / "head.onnx"
    axes = {"features": {0: "batch"}, "scores": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (rows_of(tree, 3)[0],), path, input_names=["features"], dynamo=False,
            output_names=["scores"], dynamic_axes=axes, opset_version=opset,
        )  # fmt: skip
    session = open_session(path)
    for rows, scale in ((1, 1.0), (2, 30.0), (7, 1.0), (7, 1000.0)):
        features = scale * rows_of(tree, rows, rows)[0]
        with torch.inference_mode():
            want = module(features).numpy()
        (have,) = session.run(None, {"features": features.numpy()})
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_log_sigmoid_is_exact_at_both_ends() -> None:
    values = torch.tensor([-1000.0, -90.0, -1.0, 0.0, 15.0, 80.0])
    torch.testing.assert_close(log_sigmoid(values), functional.logsigmoid(values))
