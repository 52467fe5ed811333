from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_tokenizers import ascii_only, byte_level, llama_2, word_level, word_piece
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from fastmix_data.errors import FastmixError, InputError
from fastmix_data.tokens.control_tokens import control_tokens, with_private_names
from fastmix_data.tokens.encoder import Encoder
from fastmix_data.tokens.encoding import Texts, encode_documents, encode_texts
from fastmix_data.tokens.fidelity import Fidelity, LossCount, excerpts
from fastmix_data.tokens.tokenizer import describe_tokenizer, load_tokenizer

KINDS = {
    "byte level": lambda: byte_level(("<|endoftext|>", "<s>", "</s>", "[INST]"), bos="<s>"),
    "prepended": lambda: llama_2(("<unk>", "<s>", "</s>", "[INST]", "<|endoftext|>")),
    "metaspace": lambda: llama_2(("<unk>", "<s>", "</s>", "[INST]", "<|endoftext|>"), prepends="first"),
}


@pytest.fixture(scope="module", params=KINDS)
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    KINDS[request.param]().save(str(path))
    return path


@pytest.fixture(scope="module")
def encoders(path):
    """Of both libraries, as far as they can read it."""
    found = [Encoder(path, backend="tokenizers")]
    with contextlib.suppress(FastmixError):
        found.append(Encoder(path))
    return found


def write(tokenizer, folder):
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def lists(encoded):
    return [part.tolist() for part in np.split(encoded.ids, encoded.offsets[1:-1])]


PIECES = st.sampled_from(
    ["<s>", "</s>", "[INST]", "<|endoftext|>", "<|end", "oftext|>", "<unk>", " ", "\n", "a", "naïve", "🤦🏽", "</"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(PIECES | st.text(max_size=8), max_size=8).map("".join), min_size=1, max_size=4))
def test_spelled_control_tokens_become_text_that_decodes_to_itself_and_are_counted(path, encoders, texts):
    reference = load_tokenizer(path)
    reference.encode_special_tokens = True  # the library's own way, for tokens that are marked special
    for encoder in encoders:
        encoded = encode_texts(encoder, Texts(texts), spelled_is_text=True)
        assert lists(encoded) == [reference.encode(text, add_special_tokens=False).ids for text in texts]
        assert not set(encoded.ids.tolist()) & set(encoder.control.ids.values())
        assert encoded.num_spelled_D.tolist() == [len(encoder.control.pattern.findall(text)) for text in texts]
        for ids, text in zip(lists(encoded), texts, strict=True):
            # The decoder of Llama 2 takes one space off the front, where the tokenizer put it.
            assert reference.decode(ids, skip_special_tokens=False).lstrip() == text.lstrip()


@pytest.mark.parametrize("backend", ["tokenizers", "fastokens"])
def test_spelled_control_tokens_become_tokens_where_asked_for(tmp_path, backend):
    encoder = Encoder(write(byte_level(("<|endoftext|>", "<s>")), tmp_path), backend=backend)
    encoded = encode_texts(encoder, Texts(["a<s>b", "<|endoftext|>"]), spelled_is_text=False)
    assert encoded.num_spelled_D.tolist() == [1, 1]
    assert [ids.count(encoder.control.ids["<s>"]) for ids in lists(encoded)] == [1, 0]
    documents = encode_documents(encoder, Texts(["a<s>b", "<|endoftext|>"]), eos_id=0, dtype=np.dtype("<u2"), encoded=encoded)
    assert documents.tokens[documents.starts_D[1] :].tolist() == [0]  # a document that ends itself has one end


@pytest.mark.parametrize("backend", ["tokenizers", "fastokens"])
def test_an_end_token_that_is_not_marked_special_is_a_control_token_all_the_same(tmp_path, backend):
    tokenizer = byte_level(("<|endoftext|>",))
    tokenizer.add_tokens([AddedToken("<stop>", special=False, normalized=False), AddedToken("<think>", normalized=False)])
    path = write(tokenizer, tmp_path)
    info = describe_tokenizer(path, eos_token="<stop>")
    encoder = Encoder(path, backend=backend, control=info.edges)
    text = "a<stop>b<think>"
    encoded = encode_texts(encoder, Texts([text]), spelled_is_text=True)
    assert info.eos_id not in encoded.ids
    assert encoded.ids[-1] == tokenizer.token_to_id("<think>")  # vocabulary as any other, which texts are meant to use
    assert tokenizer.decode(encoded.ids.tolist()) == text


def test_a_model_that_looks_up_whole_words_cannot_find_a_control_token(tmp_path):
    path = write(word_level(), tmp_path)
    info = describe_tokenizer(path)
    encoder = Encoder(path, backend="tokenizers", control=info.edges)
    encoded = encode_texts(encoder, Texts(["the </s> cat <unk> zebra", "the cat"]), spelled_is_text=True)
    unknown = encoder.unknown_id
    the, cat = (load_tokenizer(path).token_to_id(word) for word in ("the", "cat"))
    assert lists(encoded) == [[the, unknown, cat, unknown, unknown], [the, cat]]
    assert (encoded.num_spelled_D.tolist(), encoded.num_unknown_D.tolist()) == ([2, 0], [3, 0])


def test_the_copy_with_private_names_has_the_same_ids(path):
    content = json.loads(load_tokenizer(path).to_str())
    control = control_tokens(content)
    original, copy = load_tokenizer(path), Tokenizer.from_str(with_private_names(content, control))
    names = original.get_vocab(with_added_tokens=True)
    assert copy.get_vocab(with_added_tokens=True) == {
        control.private_names.get(name, name): number for name, number in names.items()
    }


TEXT = st.text(max_size=20) | st.lists(st.sampled_from(["the cat", " ", "naïve", "\n", "🤦🏽", "a", "▁"]), max_size=6).map(
    "".join
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=3))
@example(parts=[("a▁", " b", "")])
@example(parts=[("", "", "")])
def test_loss_is_on_the_tokens_that_hold_characters_of_the_answer(path, encoders, parts):
    reference = Encoder(path, backend="tokenizers").reference
    texts = ["".join(part) for part in parts]
    spans = [((len(before), len(before) + len(answer)),) if answer else () for before, answer, _ in parts]
    for encoder in encoders:
        documents = encode_documents(encoder, Texts(texts, spans), eos_id=1 << 20, dtype=np.dtype("<u4"))
        for number, (text, span) in enumerate(zip(texts, spans, strict=True)):
            here = slice(documents.starts_D[number], documents.ends_D[number] - 1)
            whole = reference.encode(text, add_special_tokens=False)
            assert documents.tokens[here].tolist() == whole.ids
            expected = [int(any(end > start and begin < stop for start, stop in span)) for begin, end in whole.offsets]
            mask = documents.loss_mask[here].tolist()
            # Nothing but the space that a tokenizer puts in front may be seen otherwise: it is no character of the text.
            assert mask[1:] == expected[1:]
            assert documents.loss_mask[documents.ends_D[number] - 1] == (mask[-1] if mask else 1)
            with_loss = np.flatnonzero(documents.loss_mask[documents.starts_D[number] : documents.ends_D[number]])
            length = documents.ends_D[number] - documents.starts_D[number]
            assert documents.num_prompt_tokens_D[number] == (with_loss[0] if len(with_loss) else length)


def test_a_token_that_takes_a_space_with_it_moves_no_border(tmp_path):
    tokenizer = llama_2(prepends="first")
    tokenizer.add_special_tokens([AddedToken("<sep>", rstrip=True, special=True)])
    encoder = Encoder(write(tokenizer, tmp_path), backend="tokenizers")
    texts = Texts(["ab<sep> cd"], [((7, 10),)])
    encoded = encode_texts(encoder, texts, spelled_is_text=False)
    documents = encode_documents(encoder, texts, eos_id=2, dtype=np.dtype("<u2"), encoded=encoded)
    with_loss = documents.tokens[documents.loss_mask.astype(bool)].tolist()
    # The space belongs to the separator, which so holds the first character of the answer.
    assert "".join(map(tokenizer.id_to_token, with_loss)).replace("▁", "") == "<sep>cd</s>"


def test_a_completion_gains_no_space(tmp_path):
    path = write(llama_2(), tmp_path)
    reference = load_tokenizer(path)
    for encoder in (Encoder(path), Encoder(path, backend="tokenizers")):
        text = "What is the capital?\nParis"
        documents = encode_documents(encoder, Texts([text], [((21, 26),)]), eos_id=2, dtype=np.dtype("<u2"))
        assert reference.decode(documents.tokens.tolist()) == text
        answer = documents.tokens[documents.loss_mask.astype(bool)].tolist()
        assert "".join(map(reference.id_to_token, answer)) == "Paris</s>"


@pytest.mark.parametrize("backend", ["tokenizers", "fastokens"])
def test_documents_begin_with_the_start_token_once_and_it_carries_no_loss(tmp_path, backend):
    path = write(byte_level(("<|endoftext|>", "<s>"), bos="<s>"), tmp_path)
    info = describe_tokenizer(path)
    assert info.bos_tokens == ("<s>",)
    encoder = Encoder(path, backend=backend, control=info.edges)
    texts = ["ab", "", "<s>ab", "c"]
    encoded = encode_texts(encoder, Texts(texts), spelled_is_text=False)
    edges = {"eos_id": 0, "bos_ids": info.bos_ids, "dtype": np.dtype("<u2")}
    documents = encode_documents(encoder, Texts(texts), encoded=encoded, **edges)
    reference = load_tokenizer(path)
    whole = [reference.encode(text).ids for text in ("ab", "", "ab", "c")]  # with what the post-processor puts in front
    assert np.split(documents.tokens, documents.ends_D[:-1])[0].tolist() == [*whole[0], 0]
    assert documents.tokens.tolist() == [token for ids in whole for token in (*ids, 0)]
    masked = encode_documents(encoder, Texts(["ab"], [((0, 2),)]), **edges)
    assert masked.loss_mask.tolist() == [0] + [1] * (len(masked.tokens) - 1)
    assert masked.num_prompt_tokens_D.tolist() == [1]


def test_ids_outside_of_the_vocabulary_are_refused(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 3, "</s>": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = Encoder(write(tokenizer, tmp_path), backend="tokenizers")
    assert encoder.vocab_size == 4
    encoder.vocab_size = 3
    with pytest.raises(FastmixError, match=r"gives the id 3, and its vocabulary ends at 2; save the tokenizer again"):
        encode_texts(encoder, Texts(["a b"]), spelled_is_text=True)


def test_a_tokenizer_without_a_token_for_the_unknown_names_the_text(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = Encoder(write(tokenizer, tmp_path), backend="tokenizers")
    for encode in (lambda: encoder.encode_flat(["a", "a b"]), lambda: Fidelity(encoder).look("a b")):
        with pytest.raises(FastmixError, match=r"cannot encode a text beginning 'a b' .*; choose a tokenizer that"):
            encode()


RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 12


@pytest.mark.parametrize(
    ("make", "text", "is_lossless", "lost", "is_changed"),
    [
        (byte_level, RUSSIAN, True, 0, False),
        (llama_2, RUSSIAN, True, 0, False),
        (ascii_only, "the cat sat on the mat, it's\n\n 1234", False, 0, False),
        (ascii_only, RUSSIAN, False, 1, False),
        (word_piece, RUSSIAN, False, 1, False),
        (word_piece, "The Cat sat on the mat", False, 0, True),
        (lambda: word_piece(lowercase=False), "the cat sat on the mat", False, 0, False),
        (word_level, "the cat zebra", False, 5 / 11, False),
    ],
)
def test_what_a_tokenizer_drops_or_does_not_know_is_lost_and_case_is_changed(tmp_path, make, text, is_lossless, lost, is_changed):
    fidelity = Fidelity(Encoder(write(make(), tmp_path), backend="tokenizers"))
    assert fidelity.is_lossless == is_lossless
    loss = fidelity.look(text)
    assert abs(loss.num_lost / loss.num_characters - lost) < 0.05
    assert loss.is_changed == is_changed


def test_a_loss_above_the_limit_is_refused_with_an_example_and_few_characters_are_no_proof(tmp_path):
    fidelity = Fidelity(Encoder(write(ascii_only(), tmp_path), backend="tokenizers"))
    few, many = LossCount(), LossCount()
    few.add(fidelity.look("ü ö"), place="a.jsonl, line 3", text="ü ö")
    few.require_below(0.01, where="sources.a")
    many.add(fidelity.look(RUSSIAN), place="a.jsonl, line 3", text=RUSSIAN)
    with pytest.raises(
        InputError, match=r"sources\.a: the tokenizer loses \d\d.*a\.jsonl, line 3: 'Все.*decodes to .*max_unknown"
    ):
        many.require_below(0.01, where="sources.a")
    many.require_below(1.0, where="sources.a")


@given(
    texts=st.lists(
        st.lists(st.sampled_from(["elephant", "of", "naïve"]), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=30
    ),
    count=st.integers(1, 4),
)
def test_excerpts_are_of_several_texts_and_of_whole_words(texts, count):
    found = excerpts(texts, count=count, length=25)
    assert len(found) == min(count, len(texts))
    assert len({number for number, _ in found}) == len(found)
    for number, part in found:
        assert 0 < len(part) <= 25 and part in texts[number]
        assert set(part.split()) <= {"elephant", "of", "naïve"}
