import itertools
import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import byte_level, llama_2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from fastmix_data.errors import FastmixError, RecipeError
from fastmix_data.tokens.encoder import Encoder, first_difference
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


def with_config(tokenizer, folder, **config):
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / "tokenizer.json"


def with_words(control, words):
    """A byte-level tokenizer with added tokens, of which some are no control tokens."""
    tokenizer = byte_level(control)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return tokenizer


@pytest.mark.parametrize(
    ("control", "words", "config", "eos"),
    [
        # As Gemma: `</s>` is a tag of HTML.
        (["<eos>", "<bos>"], ["<s>", "</s>"], {"eos_token": "<eos>"}, "<eos>"),
        # As a chat model: its configuration names the end of a turn, documents ended otherwise.
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], {"eos_token": {"content": "<|im_end|>"}}, "<|endoftext|>"),
        (["<|END_OF_TURN|>", "<pad>"], ["</s>"], {"eos_token": "<|END_OF_TURN|>"}, "<|END_OF_TURN|>"),
        # Nothing is marked special.
        (["<pad>"], ["<|im_end|>"], {}, "<|im_end|>"),
        (["<pad>"], ["<stop>"], {"eos_token": "<stop>"}, "<stop>"),
    ],
)
def test_the_end_of_a_document_is_the_tokenizers_own(tmp_path, control, words, config, eos):
    path = with_config(with_words(control, words), tmp_path, **config)
    assert describe_tokenizer(path).eos_token == eos


def test_the_end_that_a_post_processor_writes_is_found(tmp_path):
    tokenizer = byte_level(["<start>", "<stop>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <stop>", pair="$A $B", special_tokens=[("<start>", 0), ("<stop>", 1)]
    )
    path = with_config(tokenizer, tmp_path)
    info = describe_tokenizer(path)
    assert (info.eos_token, info.bos_tokens, info.bos_ids) == ("<stop>", ("<start>",), (0,))


def few_words():
    """A vocabulary without most letters, and without a token for what it does not know."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "zebra": 2}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("make", "config", "options", "bos"),
    [
        (lambda: byte_level(["<|endoftext|>"]), {}, {}, ()),
        (lambda: byte_level(["<|endoftext|>", "<s>"], bos="<s>"), {}, {}, ("<s>",)),
        (lambda: byte_level(["<|endoftext|>", "<s>"], bos="<s>"), {}, {"bos": False}, ()),
        (lambda: byte_level(["<|endoftext|>"]), {}, {"bos": True}, ("<|endoftext|>",)),
        (lambda: byte_level(["<|endoftext|>", "<go>"]), {"bos_token": "<go>"}, {"bos": True}, ("<go>",)),
        (lambda: byte_level(["<|endoftext|>", "<go>"]), {"bos_token": "<go>"}, {}, ()),
        (lambda: byte_level(["<|endoftext|>", "<go>"]), {}, {"bos_token": "<go>"}, ("<go>",)),
        (llama_2, {}, {}, ("<s>",)),
        (few_words, {}, {}, ("<s>",)),
    ],
)
def test_the_start_of_a_document_is_what_the_tokenizer_puts_there_unless_told_otherwise(tmp_path, make, config, options, bos):
    assert describe_tokenizer(with_config(make(), tmp_path, **config), **options).bos_tokens == bos


def test_a_start_that_is_no_token_is_refused_with_a_remedy(tmp_path):
    path = with_config(byte_level(["<stop>"]), tmp_path)
    with pytest.raises(RecipeError, match=r"tokenizer\.bos: .* none of a usual name .*tokenizer\.bos_token"):
        describe_tokenizer(path, eos_token="<stop>", bos=True)
    with pytest.raises(RecipeError, match=r"tokenizer\.bos_token: '<s>' is not a token of .*tokenizer\.json"):
        describe_tokenizer(path, eos_token="<stop>", bos_token="<s>")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<gone>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<gone>": {"id": "<gone>", "ids": [90_000], "tokens": ["<gone>"]}},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"begins texts with '<gone>', which is no token of it; set tokenizer\.bos: false"):
        describe_tokenizer(path, eos_token="<stop>")
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"tokenizer_config\.json: not a tokenizer_config\.json .*repair it"):
        describe_tokenizer(path, eos_token="<stop>")


def test_training_takes_time_in_proportion_to_runs_without_spaces():
    rng = random.Random(0)
    genome = "".join(rng.choices("ACGT", k=200_000))
    started = time.process_time()
    content = train_tokenizer([genome, *TEXTS], vocab_size=1000)
    # Uncut, this takes 40 s; cut, 0.3 s.
    assert time.process_time() - started < 5
    tokenizer = Tokenizer.from_str(content)
    assert tokenizer.decode(tokenizer.encode(genome[:5000]).ids) == genome[:5000]
    assert len(tokenizer.encode(genome[:5000]).ids) < 2000


def test_texts_of_ordinary_words_are_not_cut_for_training():
    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [*TEXTS * 5, "x" * 511 + " y"]
    reference.train_from_iterator(texts, trainer)
    assert train_tokenizer(texts, vocab_size=320) == reference.to_str()


def test_a_tokenizer_of_the_hub_comes_with_its_template_and_configuration(tmp_path):
    """From the hub's own cache: nothing is asked of the network."""
    folder = tmp_path / "hub" / "models--org--name"
    snapshot = folder / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    with_config(byte_level(["<|endoftext|>"]), snapshot, eos_token="<|endoftext|>")
    program = (
        "from fastmix_data.tokens.tokenizer import download_beside, download_tokenizer;"
        "print(len(download_tokenizer('org/name')), download_beside('org/name', 'tokenizer_config.json'),"
        "download_beside('org/name', 'chat_template.jinja'))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    size, rest = done.stdout.split(" ", 1)
    assert int(size) > 1000
    assert rest.strip() == """b'{"eos_token": "<|endoftext|>"}' None"""
