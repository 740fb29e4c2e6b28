"""Files that are no GGUF, damaged, or of what is not read: one error that says what, and nothing is left behind."""

import struct

import pytest
from gguf_made_here import small_file

from cktrain.hf.gguf_file.import_gguf import import_gguf
from cktrain.hf.gguf_file.reader import read_gguf
from cktrain.launch.cli import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_file(tmp_path_factory.mktemp("whole"))


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    return data.replace(old, new, 1)


def key(name: str, value: int) -> bytes:
    """A u32 key as it stands in a file."""
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<II", 4, value)


def tensor(name: str, *sizes: int, kind: int) -> bytes:
    head = struct.pack("<Q", len(name)) + name.encode()
    return (
        head
        + struct.pack("<I", len(sizes))
        + struct.pack(f"<{len(sizes)}Q", *sizes)
        + struct.pack("<I", kind)
    )


K, NORM = "blk.0.attn_k.weight", "blk.0.attn_norm.weight"
DAMAGE = {
    "not a GGUF": (lambda data: b"PK\3\4" + data[4:], "does not begin with GGUF"),
    "another version": (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "of version 1"),
    "big-endian": (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
    "more tensors": (
        lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:],
        "announces 1,152,921,504,606,846,976",
    ),
    "cut in the tensors": (lambda data: data[:-300], "ends at byte"),
    "cut in the header": (lambda data: data[:500], "bytes"),
    "an architecture": (
        lambda data: replaced(data, b"llama", b"gemma"),
        "architecture is 'gemma', and llama",
    ),
    "a block type": (
        lambda data: replaced(data, tensor(K, 32, 16, kind=8), tensor(K, 32, 16, kind=77)),
        "of block type 77",
    ),
    "a type that is no float": (
        lambda data: replaced(data, tensor(NORM, 32, kind=0), tensor(NORM, 32, kind=26)),
        "I32, which the package gguf does not dequantize",
    ),
    "a shape": (
        lambda data: replaced(data, tensor(K, 32, 16, kind=8), tensor(K, 64, 8, kind=8)),
        r"blk.0.attn_k.weight is \(8, 64\), and \(16, 32\) by the keys",
    ),
    "a count": (
        lambda data: replaced(data, key("llama.block_count", 1), key("llama.block_count", 90_000)),
        "tensors of 1 blocks, and the keys say 90,000",
    ),
    "a tensor's name": (
        lambda data: replaced(data, b"blk.0.ffn_gate.weight", b"blk.0.ffn_gaze.weight"),
        "'blk.0.ffn_gaze.weight' is none of the architecture llama",
    ),
    "a rule for words": (lambda data: replaced(data, b"gpt-2", b"gpt-9"), "tokenizer.ggml.pre is 'gpt-9'"),
    "an id": (
        lambda data: replaced(
            data, key("tokenizer.ggml.bos_token_id", 0), key("tokenizer.ggml.bos_token_id", 999)
        ),
        "bos_token_id is 999, and there are 272 tokens",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_error_and_leaves_nothing(damage, whole, tmp_path):
    change, words = DAMAGE[damage]
    path = tmp_path / "m.gguf"
    path.write_bytes(change(whole))
    with pytest.raises(ValueError, match=words) as error:
        import_gguf(path, tmp_path / "out")
    assert "m.gguf" in str(error.value)
    assert [found.name for found in tmp_path.iterdir()] == ["m.gguf"]


def test_the_command_ends_with_status_2(whole, tmp_path, capsys):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:-300])
    assert main(["import", str(path), str(tmp_path / "out")]) == 2
    assert "The file is damaged or cut short: fetch it again." in capsys.readouterr().err
    path.write_bytes(whole)
    assert main(["import", str(path)]) == 2
    assert "Name a folder to make of it as well" in capsys.readouterr().err
    assert main(["export", str(path), str(tmp_path / "o.gguf"), "--gguf", "f16", "--dtype", "float32"]) == 2
    assert "Leave --dtype out" in capsys.readouterr().err
    assert main(["export", str(path), str(tmp_path / "hf"), "--ollama"]) == 2
    assert "Give --gguf as well" in capsys.readouterr().err
    (tmp_path / "Modelfile").touch()
    assert main(["export", str(path), str(tmp_path / "o.gguf"), "--gguf", "f16", "--ollama"]) == 2
    assert "Modelfile exists" in capsys.readouterr().err
    assert sorted(found.name for found in tmp_path.iterdir()) == ["Modelfile", "m.gguf"]


def test_the_commands_go_both_ways(whole, tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(whole)
    assert main(["import", str(tmp_path / "m.gguf"), str(tmp_path / "hf")]) == 0
    said = capsys.readouterr()
    assert "bfloat16" in said.err and "all there, all finite" in said.err and "from_pretrained" in said.out
    assert main(["export", str(tmp_path / "hf"), str(tmp_path / "o.gguf"), "--gguf", "q8_0", "--ollama"]) == 0
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./o.gguf\nTEMPLATE")
    assert main(["generate", str(tmp_path / "o.gguf"), "--prompt", "the", "--max-tokens", "3"]) == 0
    one, other = read_gguf(tmp_path / "m.gguf"), read_gguf(tmp_path / "o.gguf")
    assert one.keys["tokenizer.ggml.tokens"] == other.keys["tokenizer.ggml.tokens"]
    assert one.keys["tokenizer.ggml.merges"] == other.keys["tokenizer.ggml.merges"]
    assert set(one.tensors) == set(other.tensors)
