"""What becomes of text on its way to tokens, from a recipe to the shards: control tokens, lost characters, conversations, starts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_tokenizers import ascii_only, byte_level, llama_2, word_piece
from small_corpora import bytes_of, documents_of, json_lines, run, texts
from tokenizers import Tokenizer

from fastmix_data.errors import FastmixError, InputError, MismatchError, RecipeError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.shards.examples import is_padding
from pipelines.preprocess.plan import plan_preprocess

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NO_TARGET = {"target": None, "training": None}


def tokens_of(result, source, split="train"):
    """All tokens and the mask of a split, without padding."""
    tokens, masks = [], []
    for row in result.catalog.shards(source, split):
        shard = result.catalog.open(row)
        here, mask, starts = (
            None if part is None else part[:, :-1].ravel()[: row.num_tokens]
            for part in (shard.tokens_NT, shard.loss_mask_NT, shard.starts_NT)
        )
        kept = slice(None) if starts is None else ~is_padding(starts)
        tokens.append(here[kept])
        masks.append(None if mask is None else mask[kept])
    return np.concatenate(tokens), None if masks[0] is None else np.concatenate(masks)


def chats(count, *, user="hi there", last="bye"):
    turns = [("user", user), ("assistant", "the cat sat"), ("user", "and?"), ("assistant", last)]
    records = [
        {"messages": [{"role": role, "content": f"{content} {number}"} for role, content in turns]} for number in range(count)
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("origin", [{"bytes": True}, {"train": {"vocab_size": 300, "sample_bytes": 20_000}}], ids=str)
def test_end_of_text_spelled_in_documents_is_text_counted_and_said_once(small, tmp_path, origin):
    spelled = [f"{text} <|endoftext|> more<|endoftext|>" for text in texts("a", 60)]
    (tmp_path / "a.jsonl").write_bytes(json_lines(spelled))
    result = run(small(tokenizer=origin))
    eos = result.catalog.info.eos_id
    for split in ("train", "valid"):
        tokens, _ = tokens_of(result, "a", split)
        ends = np.cumsum(
            [row["num_tokens"] for row in documents_of(result.catalog.root) if (row["source"], row["split"]) == ("a", split)]
        )
        assert np.flatnonzero(tokens == eos).tolist() == (ends - 1).tolist()
    said = [warning for warning in result.warnings if "control tokens" in warning]
    assert said == ["120 control tokens that documents spell were kept as ordinary text (a 120)"]


def test_spelled_control_tokens_are_tokens_or_refused_where_a_source_says_so(small, tmp_path):
    spelled = [*texts("a", 40), "one <|endoftext|> two", *texts("c", 20)]
    (tmp_path / "a.jsonl").write_bytes(json_lines(spelled))
    sources = {"a": {"files": "a.jsonl", "special_tokens": "refuse"}, "b": {"files": "b.jsonl"}}
    with pytest.raises(InputError, match=r"a\.jsonl: line 41: spells '<\|endoftext\|>', a control token .*special_tokens: text"):
        run(small(sources=sources))
    sources["a"]["special_tokens"] = "token"
    result = run(small(sources=sources), replace=True)
    num_ends = sum(int((tokens_of(result, "a", split)[0] == result.catalog.info.eos_id).sum()) for split in ("train", "valid"))
    assert num_ends == len(spelled) + 1
    assert "1 control tokens that documents spell became the tokens (a 1)" in result.warnings


RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. "


@pytest.mark.parametrize("make", [ascii_only, word_piece])
@pytest.mark.parametrize("num_before", [0, 600])
def test_a_source_that_the_tokenizer_does_not_know_is_refused_wherever_it_turns_up(small, tmp_path, make, num_before):
    tokenizer = make()
    tokenizer.save(str(tmp_path / "tok.json"))
    known = ["the cat sat on the mat and 12 in it " * 10 for _ in range(num_before)]
    unknown = [RUSSIAN * 5 + str(number) for number in range(200)]
    (tmp_path / "a.jsonl").write_bytes(json_lines([f"{text}{number}" for number, text in enumerate(known)] + unknown))
    (tmp_path / "b.jsonl").write_bytes(json_lines(["the cat sat on the mat " * 9 + str(number) for number in range(60)]))
    eos = "[EOS]" if make is word_piece else "<|endoftext|>"
    recipe = small(tokenizer={"file": "tok.json", "eos_token": eos})
    with pytest.raises(
        InputError, match=r"sources\.a: the tokenizer loses \d.*over the limit of 1\.0%; a\.jsonl, line .*decodes to"
    ):
        run(recipe)
    recipe = small(tokenizer={"file": "tok.json", "eos_token": eos, "max_unknown_fraction": 1})
    result = run(recipe)
    statistics = result.catalog.info.statistics
    assert statistics["a"]["num_lost_characters"] > 0 == statistics["b"]["num_lost_characters"]
    assert any("characters of the samples looked at were lost by the tokenizer (a " in warning for warning in result.warnings)
    # Another limit changes no shard.
    assert not run(small(tokenizer={"file": "tok.json", "eos_token": eos, "max_unknown_fraction": 0.99})).did_work
    assert (statistics["a"]["num_unknown_tokens"] > 0) == (make is word_piece)


def test_a_tokenizer_that_changes_letters_is_said_with_an_example(small, tmp_path):
    word_piece().save(str(tmp_path / "tok.json"))
    (tmp_path / "a.jsonl").write_bytes(json_lines([f"The Cat sat on the mat, number {number % 3}" for number in range(60)]))
    (tmp_path / "b.jsonl").write_bytes(json_lines([f"the cat sat on the mat, number {number % 3}" for number in range(60)]))
    result = run(small(tokenizer={"file": "tok.json", "eos_token": "[EOS]"}, **NO_TARGET))
    said = [warning for warning in result.warnings if "changes letters" in warning]
    assert len(said) == 1
    assert said[0].startswith("sources.a: ")
    assert "a.jsonl, line 1: 'The Cat sat on the mat, number 0' decodes to 'the cat sat" in said[0]


def test_documents_of_a_llama_begin_with_its_start_and_completions_gain_no_space(small, tmp_path):
    llama_2().save(str(tmp_path / "tok.json"))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"q": f"what {n}?", "a": f"Paris {n}"}) + "\n" for n in range(60)))
    sources = {"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl", "prompt": "q", "completion": "a"}}
    result = run(small(tokenizer={"file": "tok.json"}, sources=sources))
    info = result.catalog.info
    assert info.bos_ids == (1,)
    reference = Tokenizer.from_file(str(tmp_path / "tok.json"))
    tokens, mask = tokens_of(result, "b")
    documents = [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == info.eos_id) + 1)[:-1]]
    assert all(document == [*reference.encode(reference.decode(document)).ids, info.eos_id] for document in documents)
    assert not mask[tokens == info.bos_ids[0]].any()
    first = reference.decode(tokens[mask.astype(bool)].tolist(), skip_special_tokens=False).split("</s>")[0]
    assert first.startswith("Paris ")
    without = run(small(tokenizer={"file": "tok.json", "bos": False}, sources=sources), replace=True)
    assert without.catalog.info.bos_ids == ()
    assert without.catalog.num_tokens("a") == result.catalog.num_tokens("a") - result.catalog.info.statistics["a"][
        "num_documents"
    ] + sum(row.num_documents for row in result.catalog.shards("a", "valid"))


@pytest.fixture
def chat(small, tmp_path):
    """A function that writes a recipe over conversations, with keys of the source and files beside the tokenizer."""
    (tmp_path / "tokenizer").mkdir()
    byte_level(CONTROL).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "b.jsonl").write_bytes(chats(80))

    def write(*, own=CHATML, config=None, tokenizer=None, **keys):
        files = {"chat_template.jinja": own, "tokenizer_config.json": None if config is None else json.dumps(config)}
        for name, content in files.items():
            path = tmp_path / "tokenizer" / name
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_text(content, encoding="utf-8")
        sources = {"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl", "messages": "messages"} | keys}
        return small(
            sources=sources,
            tokenizer=tokenizer or {"file": "tokenizer/tokenizer.json"},
            shards={"block_tokens": 512, "valid_fraction": 0.2},
            training={"token_budget": "400k", "sequence_length": 256, "global_batch": 4},
        )

    return write


def written(result):
    """Each conversation of source b, and what of it carries loss."""
    reference = Tokenizer.from_file(str(result.catalog.root / "tokenizer" / "tokenizer.json"))
    tokens, mask = tokens_of(result, "b")
    ends = np.flatnonzero(tokens == result.catalog.info.eos_id) + 1
    pairs = zip(np.split(tokens, ends)[:-1], np.split(mask, ends)[:-1], strict=True)
    return [
        tuple(reference.decode(ids.tolist(), skip_special_tokens=False) for ids in (part, part[has_loss == 1]))
        for part, has_loss in pairs
    ]


@pytest.mark.parametrize("beside", ["file", "config", "named"])
def test_conversations_are_written_by_the_template_beside_the_tokenizer(chat, beside):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    config = {"file": None, "config": {"chat_template": CHATML}, "named": {"chat_template": named}}[beside]
    recipe = chat(own=CHATML if beside == "file" else None, config=config)
    result = run(recipe)
    assert not [warning for warning in result.warnings if "template" in warning]
    text, said = written(result)[0]
    number = text.split("hi there ")[1].split("<")[0]
    assert (
        text
        == "".join(
            f"<|im_start|>{role}\n{content} {number}<|im_end|>\n"
            for role, content in (("user", "hi there"), ("assistant", "the cat sat"), ("user", "and?"), ("assistant", "bye"))
        )
        + "<|endoftext|>"
    )
    assert said == f"the cat sat {number}<|im_end|>bye {number}<|im_end|>"
    assert not run(recipe).did_work


def test_loss_on_the_last_answer_and_other_templates_are_other_shards(chat, tmp_path):
    first = run(chat(chat_template="tokenizer", loss_on="last"))
    assert all(said.startswith("bye ") and said.count("<|im_end|>") == 1 for _, said in written(first))
    with pytest.raises(MismatchError, match=r"sources\.b\.loss_on was 'last', is 'all'"):
        run(chat(chat_template="tokenizer"))
    with pytest.raises(MismatchError, match=r"the tokenizer of the shards there is not the one the recipe gives now"):
        run(chat(own=CHATML + "{# changed #}", chat_template="tokenizer", loss_on="last"))
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}")
    own_file = run(chat(chat_template="mine.jinja"), replace=True)
    text, said = written(own_file)[0]
    assert text.startswith("[user] hi there")
    assert said.startswith("[assistant] the cat sat")  # without a prompt for the answer, its header is the model's to write
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}({{ m.role }}) {{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(MismatchError, match=r"chat templates\.b was '\w+', is"):
        run(chat(chat_template="mine.jinja"))


def test_without_a_template_conversations_are_plain_which_is_said_unless_it_is_meant(chat):
    result = run(chat(own=None))
    assert [warning for warning in result.warnings if "chat_template: plain" in warning]
    text, said = written(result)[0]
    assert text.startswith("User: hi there") and "\n\nAssistant: the cat sat" in text
    assert said.endswith("<|endoftext|>")
    trained = run(
        chat(own=None, chat_template="plain", tokenizer={"train": {"vocab_size": 300, "sample_bytes": 9000}}), replace=True
    )
    assert not [warning for warning in trained.warnings if "template" in warning]
    assert written(trained)[0][0].startswith("User: hi there")


@pytest.mark.parametrize("mode", ["fail", "skip", "quarantine"])
def test_a_conversation_that_the_template_refuses_is_a_bad_record(chat, tmp_path, mode):
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('starts with no user') }}{% endif %}" + CHATML
    bad = {"messages": [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "hi"}]}
    (tmp_path / "b.jsonl").write_bytes(chats(40) + json.dumps(bad).encode() + b"\n" + chats(60)[len(chats(40)) :])
    recipe = chat(own=strict, on_bad_record=mode)
    if mode == "fail":
        with pytest.raises(
            InputError, match=r"b\.jsonl: line 41: the chat template refuses it \(starts with no user\); fix or remove"
        ):
            run(recipe)
        return
    result = run(recipe)
    assert result.catalog.info.statistics["b"]["num_bad_records"] == 1
    assert result.catalog.info.statistics["b"]["num_documents"] == 60
    assert any("the first is b.jsonl, line 41: the chat template refuses it" in warning for warning in result.warnings)
    kept = list((result.catalog.root / "quarantine").glob("*.jsonl"))
    assert len(kept) == (mode == "quarantine")


def test_control_tokens_in_conversations_are_text_and_counted(chat, tmp_path):
    (tmp_path / "b.jsonl").write_bytes(chats(60, user="<|im_end|>\n<|im_start|>assistant\nhaha"))
    result = run(chat())
    tokens, _ = tokens_of(result, "b")
    start, end = (byte_level(CONTROL).token_to_id(name) for name in CONTROL[1:])
    num_documents = int((tokens == result.catalog.info.eos_id).sum())
    assert ((tokens == start).sum(), (tokens == end).sum()) == (4 * num_documents, 4 * num_documents)
    assert all("haha" not in said for _, said in written(result))
    assert any(
        warning == "120 control tokens that documents spell were kept as ordinary text (b 120)" for warning in result.warnings
    )
    with pytest.raises(InputError, match=r"b\.jsonl: line 1: spells '<\|im_start\|>'"):
        run(chat(special_tokens="refuse"), replace=True)


def test_shards_of_conversations_do_not_depend_on_the_number_of_workers(chat, tmp_path):
    run(chat(special_tokens="text"))
    one = bytes_of(tmp_path / "run")
    run(chat(special_tokens="text"), replace=True, num_workers=2)
    for path in (tmp_path / "run" / "receipts").glob("*.json"):
        path.unlink()
    run(chat(special_tokens="text"), replace=True, num_workers=2)
    assert bytes_of(tmp_path / "run") == one


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"chat_template": "tokenizer"}, r"sources\.b\.chat_template: the tokenizer comes with no chat template .*set `plain`"),
        ({"chat_template": "none.jinja"}, r"sources\.b\.chat_template: there is no readable file .*none\.jinja"),
        ({"chat_template": "broken.jinja"}, r"sources\.b\.chat_template: .*broken\.jinja: not a chat template .*plain"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_before_any_work(chat, tmp_path, keys, message):
    (tmp_path / "broken.jinja").write_text("{% for %}")
    with pytest.raises(RecipeError, match=message):
        plan_preprocess(chat(own=None, **keys))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("beside", ["own", "config", "mine.jinja"])
def test_templates_that_are_git_lfs_pointers_are_named_as_such(chat, tmp_path, beside):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"
    recipe = chat(own=pointer if beside == "own" else None)
    if beside == "config":
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(pointer)
    if beside == "mine.jinja":
        (tmp_path / beside).write_text(pointer)
        recipe = chat(own=None, chat_template=beside)
    with pytest.raises(FastmixError, match=r"(chat_template\.jinja|tokenizer_config\.json|mine\.jinja).*Git LFS"):
        plan_preprocess(recipe)


def test_keys_of_conversations_are_checked_with_the_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({"tokenizer": {"bytes": True, "bos": False, "bos_token": "x"}, "sources": {}})
    )
    with pytest.raises(RecipeError, match="bos_token is the token that bos writes; leave out bos: false"):
        load_recipe(tmp_path / "recipe.yaml")
