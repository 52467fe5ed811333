import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fastmix_data.errors import FastmixError, RecipeError
from fastmix_data.tokens.encoding import Encoder, encode_documents, first_difference
from fastmix_data.tokens.tokenizer import byte_tokenizer, describe_tokenizer, load_tokenizer, train_tokenizer

TEXTS = [
    "the cat sat on the mat, it's 1234\n\n  and then\tsome",
    "Überraschung: naïve café 🤦🏽‍♀️ नमस्ते",
    "for i in range(10):\n    pass\n",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer(TEXTS * 5, vocab_size=300), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(byte_tokenizer(), encoding="utf-8")
    return path


def test_byte_tokenizer_has_one_token_per_byte(of_bytes):
    assert describe_tokenizer(of_bytes).vocab_size == 257
    assert describe_tokenizer(of_bytes).eos_id == 256
    for backend in ("fastokens", "tokenizers"):
        ids, offsets = Encoder(of_bytes, backend=backend).encode_flat(TEXTS)
        assert np.diff(offsets).tolist() == [len(text.encode()) for text in TEXTS]
        assert load_tokenizer(of_bytes).decode(ids.tolist()) == "".join(TEXTS)


def test_trained_tokenizer_is_the_same_in_another_process(trained):
    program = (
        "import sys, json; from fastmix_data.tokens.tokenizer import train_tokenizer;"
        "sys.stdout.write(train_tokenizer(json.loads(sys.stdin.read()), vocab_size=300))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(TEXTS * 5), capture_output=True, text=True, check=True
    )
    assert done.stdout == trained.read_text(encoding="utf-8")
    assert describe_tokenizer(trained).vocab_size == 300


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=6))
def test_fast_encoder_equals_the_reference(trained, texts):
    fast, reference = Encoder(trained), Tokenizer.from_file(str(trained))
    ids, offsets = fast.encode_flat(texts)
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids[start:stop].tolist() for start, stop in itertools.pairwise(offsets)] == expected


def test_documents_end_with_one_eos_and_prompts_carry_no_loss(trained):
    info, reference = describe_tokenizer(trained), load_tokenizer(trained)
    prompts, completions = ["what is it", "", "why"], ["a cat", "the mat", "naïve"]
    encoded = encode_documents(
        Encoder(trained), (prompts, completions), separator="\n", eos_id=info.eos_id, dtype=np.dtype("<u2")
    )
    tokens, mask = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        a, b = (reference.encode(text, add_special_tokens=False).ids for text in (prompt + "\n", completion))
        tokens += [*a, *b, info.eos_id]
        mask += [0] * len(a) + [1] * (len(b) + 1)
    assert encoded.tokens.tolist() == tokens
    assert encoded.loss_mask.tolist() == mask


def test_first_difference_names_text_and_position(trained, of_bytes):
    a, b = Encoder(trained, backend="tokenizers"), Encoder(of_bytes)
    assert first_difference(a, Encoder(trained), TEXTS) is None
    difference = first_difference(a, b, ["", "the cat"])
    assert (difference.text, difference.position) == (1, 0)
    assert difference.reference_id != difference.other_id


def test_truncation_and_padding_of_a_tokenizer_file_are_ignored(trained, tmp_path):
    tokenizer = Tokenizer.from_file(str(trained))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    for backend in ("fastokens", "tokenizers"):
        assert first_difference(Encoder(trained, backend="tokenizers"), Encoder(path, backend=backend), TEXTS) is None


def test_tokenizer_without_eos_names_its_special_tokens_and_the_remedy(trained, tmp_path):
    content = json.loads(trained.read_text(encoding="utf-8").replace("<|endoftext|>", "<stop>"))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"<stop>.*tokenizer\.eos_token"):
        describe_tokenizer(path)
    with pytest.raises(RecipeError, match=r"'</s>' is not a token of .*tokenizer\.eos_token"):
        describe_tokenizer(path, eos_token="</s>")
    assert describe_tokenizer(path, eos_token="<stop>").eos_token == "<stop>"


def test_unreadable_tokenizers_are_one_line(tmp_path):
    broken = tmp_path / "tokenizer.json"
    with pytest.raises(RecipeError, match=r"there is no such tokenizer"):
        load_tokenizer(broken)
    broken.write_text("{}")
    with pytest.raises(RecipeError, match=r"not a tokenizer\.json") as caught:
        load_tokenizer(broken)
    assert "\n" not in str(caught.value)
    with pytest.raises(FastmixError, match="fastokens cannot read"):
        Encoder(broken)
