"""What a parameter's role says: each family names all of its modules, and what it does not name is an error."""

from __future__ import annotations

import pytest

from cktrain import cython_kernels
from cktrain.memory.param import Param
from cktrain.models import FAMILIES
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.parallel.roles import tag_by_role


def params_of(config):
    return build_model(config.model, Numerics(cython_kernels.load(), "fp32"), 16).params()


@pytest.mark.parametrize("overrides", [{}, {"model.qk_norm": True, "model.attention_bias": True}])
def test_every_parameter_of_a_llama_has_a_role(tiny, overrides):
    params = {param.spec.role: param for param in params_of(tiny(**overrides))}
    tag_by_role(params.values(), FAMILIES["llama"].styles)
    partial = {role for role, param in params.items() if "tensor" in param.spec.reduce_axes}
    norms = {role for role in params if "norm" in role}
    biases = {role for role in params if role.endswith("o_proj.bias")}
    assert partial == norms | biases
    matrices = {role for role, param in params.items() if param.spec.optimizer == "matrix"}
    assert matrices == {role for role in params if role.endswith("_proj.weight")}


def test_every_parameter_of_a_gpt2_has_a_role(tiny):
    params = {param.spec.role: param for param in params_of(tiny(**{"model.family": "gpt2"}))}
    tag_by_role(params.values(), FAMILIES["gpt2"].styles)
    assert "tensor" in params["transformer.wpe.weight"].spec.reduce_axes
    assert "tensor" not in params["transformer.h.mlp.c_fc.bias"].spec.reduce_axes
    assert "tensor" in params["transformer.h.mlp.c_proj.bias"].spec.reduce_axes
    assert params["transformer.wte.weight"].spec.optimizer == "elementwise"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.4.mlp.router.weight", r"no style is given for model\.layers\.mlp\.router"),
        ("model.embed_tokens.bias", r"its style 'vocabulary' has no bias"),
    ],
)
def test_a_role_that_is_not_listed_is_an_error(name, words):
    with pytest.raises(ValueError, match=words):
        tag_by_role([Param(name, (4, 4))], FAMILIES["llama"].styles)
