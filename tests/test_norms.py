"""Filtered norms as layers: shapes, errors, folding, and residual trunks that lose features exactly."""

import copy

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from networks import outputs, relative
from rule_cases import after, image_case, leaves, row_case, stays
from torch import nn

import shrinknets_fast as sn

WIDTH, DEAD = 12, [1, 4, 5, 10]


def over_features():
    """(layer, its plain class's twin, x) for each kind; of group norms both groups lose as many."""
    x, images = torch.randn(3, 5, 8), torch.randn(2, 8, 4, 4)
    return {
        "layer": (sn.FilteredLayerNorm(8), nn.LayerNorm(8), x),
        "layer without bias": (sn.FilteredLayerNorm(8, bias=False), nn.LayerNorm(8, bias=False), x),
        "bare layer": (sn.FilteredLayerNorm(8, 1e-3, False), nn.LayerNorm(8, 1e-3, False), x),
        "rms": (sn.FilteredRMSNorm(8), nn.RMSNorm(8), x),
        "bare rms": (sn.FilteredRMSNorm([8], 1e-3, False), nn.RMSNorm([8], 1e-3, False), x),
        "group": (sn.FilteredGroupNorm(2, 8), nn.GroupNorm(2, 8), images),
        "bare group": (sn.FilteredGroupNorm(2, 8, affine=False), nn.GroupNorm(2, 8, affine=False), images),
        "instance": (sn.FilteredInstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8, affine=True), images),
        "bare instance": (sn.FilteredInstanceNorm2d(8), nn.InstanceNorm2d(8), images),
        "instance with statistics": (
            sn.FilteredInstanceNorm2d(8, 1e-4, 0.3, True, True),
            nn.InstanceNorm2d(8, 1e-4, 0.3, True, True),
            images,
        ),
    }


KINDS = list(over_features())


def kill(model, name="theta", dead=DEAD):
    with torch.no_grad():
        model.get_parameter(name)[dead] = -0.5


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_theta_at_one_it_is_the_plain_layer(kind):
    layer, plain, x = (t.double() for t in over_features()[kind])
    assert isinstance(layer, type(plain)) and layer.plain is type(plain)
    nn.init.ones_(layer.theta)
    missing = layer.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["theta"] and not missing.unexpected_keys
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), plain.train(mode)(x))
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), buffer)


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_no_more_for_the_backward_than_the_plain_layer(kind):
    from bench.memory import saved_bytes

    if "group" in kind or "instance" in kind:
        layer, plain, x = over_features()[kind]
        x = torch.randn(64, 8, 16, 16, requires_grad=True)
        if kind == "bare instance":
            plain = nn.InstanceNorm2d(8, affine=True)  # for each sample torch copies the weight that a filter is
    else:
        layer, plain, x = over_features()[kind]
        x = torch.randn(64, 32, 8, requires_grad=True)
    of_parameters = (
        4 * sum(p.numel() for p in layer.parameters()) + 2 * 4 * 8
    )  # an instance norm's weight before and after folding
    assert saved_bytes(lambda: layer(x)) <= saved_bytes(lambda: plain(x)) + of_parameters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sn.FilteredLayerNorm((3, 4)), "FilteredLayerNorm: normalized_shape is (3, 4), expected one dimension"),
        (lambda: sn.FilteredRMSNorm(()), "FilteredRMSNorm: normalized_shape is (), expected one dimension"),
        (lambda: sn.FilteredLayerNorm(4, init=0), "FilteredLayerNorm: init is 0, expected 'uniform' or a positive"),
        (
            lambda: sn.FilteredGroupNorm(2, 4, theta=nn.Parameter(torch.ones(3))),
            "FilteredGroupNorm: theta has shape (3,), expected (4,)",
        ),
        (
            lambda: sn.functional.filtered_layer_norm(torch.ones(2, 3), (4,), None, None, torch.ones(3)),
            "filtered_layer_norm: normalized_shape is (4,), expected (3,) as theta",
        ),
        (
            lambda: sn.functional.filtered_rms_norm(
                torch.ones(2, 3), (3,), sn.FilteredRMSNorm(3).weight, torch.ones(3)
            ),
            "weight was read from a FilteredRMSNorm, so it has its filter in it already",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(sn.ShrinkError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_input_of_another_size_is_refused_in_one_line():
    with pytest.raises(RuntimeError, match=r"^layer_norm: theta has shape \(4,\), expected \(3,\) to match the last"):
        sn.FilteredLayerNorm(4)(torch.ones(2, 3))


def test_the_eps_of_an_rms_norm_is_torchs():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = torch.full((2, 4), 1e-4, dtype=dtype)
        assert_close(
            sn.FilteredRMSNorm(4, init=1.0, dtype=dtype)(x),
            F.rms_norm(x.double(), (4,), eps=torch.finfo(torch.promote_types(dtype, torch.float32)).eps),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dead", [[], [0, 3, 5, 7], [0, 3]], ids=["alive", "some dead", "unequal groups"])
def test_folding_gives_the_same_function(kind, dead):
    layer, plain, x = (t.double() for t in over_features()[kind])
    kill(layer, dead=dead)
    sn.GarbageCollector(layer, x)  # nothing leaves: features are the model's output
    for name in ("weight", "bias"):
        if name in layer._parameters and layer._parameters[name] is not None:
            nn.init.normal_(layer._parameters[name])
    folded = sn.fold_filters(layer)
    assert not [m for m in folded.modules() if type(m).__module__.startswith("shrinknets_fast")]
    if not dead or "instance" in kind:
        assert type(folded) is type(plain) and folded.extra_repr().count("True") >= plain.extra_repr().count("True")
    assert relative(folded.eval()(x), layer.eval()(x)) < 1e-13


def test_instance_norm_takes_one_sample_without_a_batch():
    for dims, kind in ((1, sn.FilteredInstanceNorm1d), (2, sn.FilteredInstanceNorm2d), (3, sn.FilteredInstanceNorm3d)):
        layer, x = kind(4), torch.randn(4, *[5] * dims)
        kill(layer, dead=[2])
        assert torch.equal(layer(x), layer(x[None])[0]) and (layer(x)[2] == 0).all() and (layer(x)[1] != 0).any()


@pytest.mark.parametrize("make", [sn.FilteredLayerNorm, sn.FilteredRMSNorm])
def test_a_norms_own_theta_removes_what_it_reads(make):
    """The first layer's features are alive, and leave since their only reader does not count them."""
    model, x = row_case(make(8, init=0.6))
    kill(model, "middle.theta", [1, 2, 6])
    leaves((model, x), 3, dead=())
    assert model.middle.normalized_shape == (5,) and model.first.out_features == model.reader.in_features == 5


@pytest.mark.parametrize("make", [sn.FilteredLayerNorm, sn.FilteredRMSNorm])
def test_a_zero_that_the_norm_counts_stays(make):
    removed, _ = after(*row_case(make(8, init=0.6)))
    assert removed == 0


def test_features_dead_in_both_leave():
    model, x = row_case(sn.FilteredLayerNorm(8, init=0.6))
    kill(model, "middle.theta", [1, 2, 6])
    leaves((model, x), 3, dead=(1, 2, 5))


def test_a_plain_reader_keeps_what_a_norm_does_not_count():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.other = sn.FilteredLayerNorm(8, init=0.6), nn.Linear(8, 8)

        def forward(self, x):
            return self.norm(x) + self.other(x)

    model, x = row_case(Both())
    kill(model, "middle.norm.theta", [1, 2])
    stays((model, x), "is not zero where reader .*reads it", dead=())


def test_group_norm_loses_equally_many():
    model, x = image_case(sn.FilteredGroupNorm(2, 8, init=0.6))
    kill(model, "middle.theta", [1, 5, 2])
    leaves((model, x), 2, dead=())
    assert model.middle.num_channels == 6 and model.middle.num_groups == 2 and model.first.out_channels == 6
    assert sn.features(model)["middle"] == (5, 6)


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_and_its_statistics_shrink(affine):
    model, x = image_case(sn.FilteredInstanceNorm2d(8, affine=affine, track_running_stats=True, init=0.6))
    kill(model, "middle.theta", [1, 5, 2])
    leaves((model, x), 3, dead=())
    assert model.middle.num_features == 5 and model.middle.running_var.shape == (5,)


class Block(nn.Module):
    """Pre-norm: attention over the trunk, then a feed-forward layer. All norms share one theta."""

    def __init__(self, norm, theta):
        super().__init__()
        self.norms = nn.ModuleList(norm(WIDTH, theta=theta) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 24), nn.Linear(8, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    def __init__(self, norm, tied):
        super().__init__()
        self.theta = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.embed, self.places = nn.Embedding(11, WIDTH), nn.Parameter(torch.randn(6, WIDTH))
        self.blocks = nn.ModuleList(Block(norm, self.theta) for _ in range(2))
        self.norm, self.head = norm(WIDTH, theta=self.theta), nn.Linear(WIDTH, 11, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.fixture(params=[sn.FilteredLayerNorm, sn.FilteredRMSNorm])
def transformer(request):
    model = Transformer(request.param, tied=True).double()
    for module in model.modules():
        for name in ("weight", "bias"):
            if isinstance(module, request.param) and module._parameters.get(name) is not None:
                nn.init.normal_(module._parameters[name])
    return model, torch.randint(11, (4, 6))


def step(model, optimizer, tokens):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1, 1).flatten())
    loss.backward()
    optimizer.step()
    return float(loss)


def test_a_trunk_loses_features_exactly(transformer):
    model, tokens = transformer
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    gc = sn.GarbageCollector(model, tokens, optimizers=optimizer)
    for _ in range(3):
        step(model, optimizer, tokens)
    kill(model)
    masked = copy.deepcopy(model)
    masked_optimizer = torch.optim.Adam(masked.parameters(), lr=1e-2)
    masked_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    keeps = sn.GarbageCollector(
        masked, tokens, optimizers=masked_optimizer
    )  # it holds the dead down, and collects nothing
    before = outputs(model, tokens)
    (removed,) = gc.collect().removed.values()
    assert removed == len(DEAD)
    for old, new in zip(before, outputs(model, tokens), strict=True):
        assert relative(new, old) < 1e-12
    left = WIDTH - len(DEAD)
    assert model.embed.weight.shape == (11, left) and model.head.in_features == model.embed.embedding_dim == left
    assert model.places.shape == (6, left) and model.theta.shape == (left,) and model.norm.normalized_shape == (left,)
    for block in model.blocks:
        assert all(norm.normalized_shape == (left,) for norm in block.norms)
        assert block.qkv.in_features == block.out.out_features == block.mlp[0].in_features == left
    for _ in range(8):
        assert step(model, optimizer, tokens) == pytest.approx(step(masked, masked_optimizer, tokens), rel=1e-9)
    kept = [k for k in range(WIDTH) if k not in DEAD]
    for (name, p), (_, q) in zip(model.named_parameters(), masked.named_parameters(), strict=True):
        for dim, (size, whole) in enumerate(zip(p.shape, q.shape, strict=True)):
            q = q.index_select(dim, torch.tensor(kept)) if size != whole else q
        assert relative(p, q) < 1e-9, name
    assert keeps.plan().removed


def test_a_trunk_folds_into_plain_norms_and_loads_from_a_checkpoint(transformer):
    model, tokens = transformer
    fresh = copy.deepcopy(model)
    kill(model)
    gc = sn.GarbageCollector(model, tokens)
    folded = sn.fold_filters(model)
    assert relative(folded(tokens), model(tokens)) < 1e-12
    assert not any(isinstance(m, sn.nn.FilterBase) for m in folded.modules())
    assert type(folded.norm) is model.norm.plain and folded.norm.normalized_shape == (WIDTH - len(DEAD),)
    gc.collect()
    sn.load_state_dict(fresh, model.state_dict())
    assert fresh.norm.normalized_shape == (WIDTH - len(DEAD),)
    assert torch.equal(fresh(tokens), model(tokens))


def test_without_a_live_feature_one_stays_as_padding(transformer):
    model, tokens = transformer
    kill(model, dead=slice(None))
    before = outputs(model, tokens)
    with pytest.warns(UserWarning, match="theta|keeps|dead"):
        sn.GarbageCollector(model, tokens).collect()
    assert model.norm.normalized_shape == (1,)
    for old, new in zip(before, outputs(model, tokens), strict=True):
        assert torch.equal(old, new)
    assert relative(sn.fold_filters(model)(tokens), before[0]) == 0


def test_one_theta_for_each_norm_asks_all_of_them(transformer):
    model, tokens = transformer
    own = nn.Parameter(model.theta.detach().clone())
    model.norm.theta = own
    kill(model)
    gc = sn.GarbageCollector(model, tokens)
    assert not gc.collect().removed
    kill(model, "norm.theta", DEAD[:2])
    assert sum(gc.collect().removed.values()) == 2


def test_a_constant_that_a_bias_takes_over_leaves_beside_a_norm():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.ones(8))
            self.first, self.norm = sn.FilteredLinear(4, 8, theta=self.theta), sn.FilteredLayerNorm(8, theta=self.theta)
            self.gate, self.head = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            y = self.first(x)
            return self.gate(y.sigmoid()) + self.head(self.norm(y))

    model, x = Model().double(), torch.randn(5, 4, dtype=torch.float64)
    kill(model, dead=[1, 6])
    folded = sn.fold_filters(model, x)
    assert folded.first.out_features == folded.norm.normalized_shape[0] == 6
    assert relative(folded(x), model(x)) < 1e-13


def test_zeroed_weights_do_not_mark_what_a_norm_counts():
    model, x = row_case(sn.FilteredLayerNorm(8, init=0.6))
    model.middle.theta = model.first.theta
    with torch.no_grad(), sn.unfolded():
        model.first.weight[2], model.first.bias[2] = 0, 0
    assert sn.mark_dead(model, x) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_it_exports_and_compiles(kind):
    layer, _, x = over_features()[kind]
    kill(layer, dead=[2])
    torch.testing.assert_close(torch.export.export(layer, (x,), strict=False).module()(x), layer(x))
    x.requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.theta])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).square().sum(), [x, layer.theta])
    torch.testing.assert_close(got, expected)


def test_the_penalty_counts_a_shared_theta_once(transformer):
    model, _ = transformer
    torch.testing.assert_close(sn.penalty(model), model.theta.sum())
