"""What a clone without Git LFS or git-annex left is named as that, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmix_data.errors import InputError
from fastmix_data.recipe.proxy import ProxySection
from fastmix_data.tokens.tokenizer import load_tokenizer
from train.proxy.model import proxy_config

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 9\n"


def test_a_tokenizer_that_is_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(LFS)
    with pytest.raises(InputError, match=r"tokenizer\.json is a Git LFS pointer, not the data; run `git lfs pull`"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_checkpoint_whose_weights_are_a_pointer(tmp_path: Path, name: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "base" / name).write_bytes(b"/annex/objects/SHA256E-s9--00\n")
    with pytest.raises(InputError, match=rf"proxy\.checkpoint: {name} is a git-annex pointer, not the data; run `git annex get"):
        proxy_config(ProxySection(checkpoint="base"), base=tmp_path, vocab_size=None, sequence_length=16)
