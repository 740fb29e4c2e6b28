"""What every family's file must keep to, read from the files and from the cases in tests/golden/hf."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden" / "hf"))
from hf_parity import CASES, golden_folder

import cktrain.models
from cktrain import cython_kernels
from cktrain.hf.config_json import ARCHITECTURES, read_model_config, write_model_config
from cktrain.hf.tensors import hf_tensors
from cktrain.models import DEFAULT_FAMILY, FAMILIES
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.parallel.roles import tag_by_role


def test_a_file_is_a_family_by_its_name():
    files = {path.stem for path in Path(cktrain.models.__file__).parent.glob("*.py")}
    assert set(FAMILIES) == files - {"__init__", *cktrain.models._SHARED}
    assert DEFAULT_FAMILY in FAMILIES


def test_a_model_type_is_one_familys():
    counted = Counter(kind for family in FAMILIES.values() for kind in family.model_types)
    assert set(counted.values()) == {1} and set(counted) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FAMILIES)
def test_styles_name_each_parameter_and_nothing_else(name):
    family, roles = FAMILIES[name], set()
    for case in CASES:
        config = read_model_config(golden_folder(case))
        if config.family == name:
            model = build_model(config, Numerics(cython_kernels.load("reference"), "fp32"), 8)
            tag_by_role(model.params(), family.styles)
            roles |= {param.spec.role.rpartition(".")[0] for param in model.params()}
    assert roles == set(family.styles)


@pytest.mark.parametrize("case", CASES)
def test_every_part_of_a_parameter_has_a_tensor_of_its_own(case):
    config = read_model_config(golden_folder(case))
    params = build_model(config, Numerics(cython_kernels.load("reference"), "fp32"), 8).params()
    tensors = hf_tensors(config, params)
    names = [tensor.name for tensor in tensors]
    split = FAMILIES[config.family].tensors.split
    assert len(set(names)) == len(names) and not any(
        f".{fused}." in name for name in names for fused in split
    )
    elements = sum(tensor.shape[0] * (*tensor.shape[1:], 1)[0] for tensor in tensors)
    assert elements == sum(param.size for param in params)


@pytest.mark.parametrize("case", CASES)
def test_config_json_written_here_means_the_same(case, tmp_path):
    config = read_model_config(golden_folder(case))
    (tmp_path / "config.json").write_text(json.dumps(write_model_config(config, "float32", {})))
    assert read_model_config(tmp_path).meaning(8) == config.meaning(8)
