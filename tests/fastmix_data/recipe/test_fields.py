"""What a recipe may say for `text`, `prompt`, `completion` and `messages`."""

import pytest

from fastmix_data.errors import RecipeError
from fastmix_data.recipe.fields import Template, parse_field
from fastmix_data.recipe.load import parse_recipe


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        ("text", ("text",)),
        ("Unnamed: 0 (en)", ("Unnamed: 0 (en)",)),
        ("a.b", ("a", "b")),
        ("choices[0].text", ("choices", 0, "text")),
        ("messages[*].content", ("messages", None, "content")),
        ("turns[-1][2]", ("turns", -1, 2)),
    ],
)
def test_a_key_is_a_path_of_names_and_places(written, steps):
    assert parse_field(written).steps == steps


def test_a_template_is_lines_of_fixed_text_and_keys():
    template = parse_field("Q: {{{q.x}}}\n{a?}")
    assert isinstance(template, Template)
    (opening, key, closing), (optional,) = template.lines
    assert (opening, key.steps, closing) == ("Q: {", ("q", "x"), "}")
    assert (optional.written, optional.is_optional, key.is_optional) == ("a", True, False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text": "a..b"}, r"sources\.a\.text: 'a\.\.b' is not a key; write key, key\.below, key\[0\] or key\[\*\]\.below"),
        ({"text": "choices[x]"}, r"'choices\[x\]' is not a key"),
        ({"text": ""}, r"'' is not a key"),
        ({"prompt": "{a", "completion": "b"}, r"sources\.a\.prompt: .* has a lone '{'; close it, or write {{"),
        ({"prompt": "a}", "completion": "b"}, r"has a lone '}'; close it, or write }}"),
        ({"text": "{}"}, r"'' is not a key"),
        ({"text": "{{instruction}}"}, r"names no key; a key stands in single braces"),
        ({"messages": "{turns}"}, r"'{turns}' is not a key"),
        ({"messages": "turns[*]"}, r"messages is one conversation; name its list without \[\*\]"),
        ({"messages": "turns", "text": "body"}, r"give text, or prompt and completion, or messages, not several"),
        ({"messages": "turns", "prompt": "q", "completion": "a"}, r"give text, or prompt and completion, or messages"),
        ({"on_bad_record": "ignore"}, r"sources\.a\.on_bad_record: .*'fail', 'skip' or 'quarantine'"),
    ],
)
def test_a_mistake_in_a_field_is_one_line_when_the_recipe_is_read(keys, message):
    recipe = {"tokenizer": {"bytes": True}, "sources": {"a": {"files": "a.jsonl", **keys}}}
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(recipe)
    assert "\n" not in str(caught.value)
