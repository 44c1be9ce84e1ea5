"""Instructions whose answer is one of several texts, or text of a grammar."""

import json
import re

import pictures
import pytest
from client import Client
from conftest import Start
from inf_mllm.msg import Instruction, Reasoning

SIDES = ["left", "center", "right", "nowhere to be seen"]
SCHEMA = {
    "type": "object",
    "properties": {
        "object": {"type": "string", "maxLength": 12},
        "side": {"enum": ["left", "center", "right"]},
        "metres": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["object", "side", "metres"],
    "additionalProperties": False,
}


def used(client: Client) -> tuple[int, int]:
    stats = client.fresh_stats()
    return stats.used, stats.tokens_seen


def test_a_choice_is_answered_with_the_probabilities_of_all(start: Start) -> None:
    _, client = start({"temperature": 5.0})
    client.show(pictures.now())
    before = used(client)
    answer = client.ask("Where is the red box?", choices=SIDES, ephemeral=True)
    assert answer.finish_reason == Reasoning.FINISH_STOP, answer.error
    assert answer.text == SIDES[answer.choice]
    assert answer.chosen_by == Reasoning.CHOSEN_BY_SUM
    for probabilities in (answer.choice_probabilities, answer.choice_probabilities_mean):
        assert len(probabilities) == len(SIDES)
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
        assert all(0.0 <= probability <= 1.0 for probability in probabilities)
    assert answer.choice_probabilities[answer.choice] == max(answer.choice_probabilities)
    assert used(client) == before, "an ephemeral choice leaves no trace"
    # However hot the model is, the likeliest is taken, and a choice that stays is in the memory.
    again = client.ask("Where is the red box?", choices=SIDES)
    assert (again.choice, again.text) == (answer.choice, answer.text)
    assert used(client)[1] > before[1]

    def pieces() -> str:
        return "".join(delta.text for delta in client.deltas if delta.instruction_id == again.instruction_id)

    client.wait(lambda: pieces() == again.text, "the pieces of the answer")
    plain = client.ask("Where is the red box?")
    assert plain.choice == -1
    assert len(plain.choice_probabilities) == 0


def test_what_decides_can_be_set(start: Start) -> None:
    _, client = start({"choices_by": "mean", "choices_limit": 3})
    client.show(pictures.now())
    answer = client.ask("Where is the red box?", choices=SIDES[:3])
    assert answer.chosen_by == Reasoning.CHOSEN_BY_MEAN
    assert answer.choice_probabilities_mean[answer.choice] == max(answer.choice_probabilities_mean)
    refused = client.ask("Where is the red box?", choices=SIDES)
    assert "choices are 4, expected at most 3 (choices_limit)" in refused.error


def test_answers_of_a_schema_always_parse(start: Start) -> None:
    _, client = start({"temperature": 100.0})
    client.show(pictures.now())
    texts = set()
    for _ in range(20):
        answer = client.ask(
            "What is in view?",
            grammar_kind=Instruction.GRAMMAR_JSON_SCHEMA,
            grammar=json.dumps(SCHEMA),
            max_new_tokens=200,
        )
        assert answer.finish_reason == Reasoning.FINISH_STOP, answer.error
        value = json.loads(answer.text)
        assert set(value) == {"object", "side", "metres"}
        assert value["side"] in ("left", "center", "right")
        assert 0 <= value["metres"] <= 99
        texts.add(answer.text)
    assert len(texts) > 10


def test_regular_expressions_and_lark_grammars_are_followed(start: Start) -> None:
    _, client = start({"temperature": 20.0})
    client.show(pictures.now())
    regex = "(left|right) [0-9]{1,3}"
    lark = 'start: ("turn " | "drive ") NUMBER\nNUMBER: /[0-9]{1,3}/'
    for kind, grammar, pattern in (
        (Instruction.GRAMMAR_REGEX, regex, regex),
        (Instruction.GRAMMAR_LARK, lark, "(turn|drive) [0-9]{1,3}"),
    ):
        for _ in range(10):
            answer = client.ask("What next?", grammar_kind=kind, grammar=grammar)
            assert answer.finish_reason == Reasoning.FINISH_STOP, answer.error
            assert re.fullmatch(pattern, answer.text), answer.text


def test_a_grammar_of_long_texts_is_cut_off_and_says_so(start: Start) -> None:
    _, client = start()
    client.show(pictures.now())
    answer = client.ask(
        "What is in view?",
        grammar_kind=Instruction.GRAMMAR_JSON_SCHEMA,
        grammar=json.dumps({"type": "string", "minLength": 1000}),
        max_new_tokens=20,
    )
    assert answer.finish_reason == Reasoning.FINISH_LENGTH
    assert "cut off at 20 tokens (max_new_tokens)" in answer.error


def test_what_is_no_choice_and_no_grammar_is_refused_and_the_node_goes_on(start: Start) -> None:
    _, client = start()
    client.show(pictures.now())
    before = used(client)
    wrong_schema = json.dumps({"properties": {"far": {"type": "metres"}}})
    misspelt = json.dumps({"properties": {"far": {"type": "string", "maxlength": 3}}})
    list_of_lists = {"type": "array", "items": {"$ref": "#/$defs/list"}, "minItems": 1}
    endless = json.dumps({"$ref": "#/$defs/list", "$defs": {"list": list_of_lists}})
    json_schema, regex, lark = 1, 2, 3
    for fields, reason in (
        ({"choices": ["red", ""]}, "choice 1 is empty"),
        ({"choices": ["red", "blue", " red"]}, "choices 0 and 2 are the same text"),
        ({"choices": [f"box {i}" for i in range(1000)]}, "choices are 1000, expected at most 64"),
        ({"choices": ["red", "box " * 10_000]}, "choice 1 is "),
        ({"choices": ["red" * 30_000]}, "bytes long together, expected at most 65536"),
        ({"choices": ["red"], "grammar_kind": regex, "grammar": "red"}, "beside a grammar"),
        ({"grammar": "red"}, "grammar_kind is 0 (none), expected"),
        ({"grammar_kind": 9, "grammar": "red"}, "grammar_kind is 9, expected"),
        ({"grammar_kind": regex}, "is empty"),
        ({"grammar_kind": regex, "grammar": "(left|right"}, "grammar (regex) cannot be compiled"),
        ({"grammar_kind": lark, "grammar": "start: nothing"}, "grammar (lark) cannot be compiled"),
        ({"grammar_kind": lark, "grammar": "(" * 40_000}, "brackets within brackets"),
        ({"grammar_kind": json_schema, "grammar": "{,"}, "line 1"),
        ({"grammar_kind": json_schema, "grammar": wrong_schema}, "#/properties/far"),
        ({"grammar_kind": json_schema, "grammar": misspelt}, "#/properties/far: the keyword is"),
        ({"grammar_kind": json_schema, "grammar": endless}, "#/$defs/list/items: there is no text of it"),
        ({"grammar_kind": regex, "grammar": r"left[^\s\S]"}, "there is no text of it"),
        ({"grammar_kind": lark, "grammar": "start: start"}, "there is no text of the rule start"),
        ({"grammar_kind": regex, "grammar": "a" * 70_000}, "bytes long, expected at most 65536"),
    ):
        answer = client.ask("Which one?", **fields)
        assert answer.finish_reason == Reasoning.FINISH_ERROR, reason
        assert reason in answer.error, answer.error
        assert (answer.text, answer.choice) == ("", -1)
    assert used(client) == before, "what is refused leaves no trace"
    assert client.ask("Which one?", choices=["red", "blue"]).choice in (0, 1)


def test_answers_of_a_fixed_form_keep_their_blanks_and_choices_their_length(start: Start) -> None:
    _, client = start({"max_new_tokens": 10, "max_new_tokens_limit": 10})
    client.show(pictures.now())
    answer = client.ask("What next?", grammar_kind=Instruction.GRAMMAR_REGEX, grammar="\n left\n", max_new_tokens=10)
    assert (answer.text, answer.error) == ("\n left\n", "")
    client.wait(lambda: any(delta.done for delta in client.deltas), "the last piece")
    pieces = [delta.text for delta in client.deltas if delta.instruction_id == answer.instruction_id]
    assert "".join(pieces) == answer.text
    long = "it stands behind the blue box and the yellow cone and the green pillar"
    chosen = client.ask("Where is the red box?", choices=[long, "left"], max_new_tokens=1000)
    assert (chosen.error, chosen.text in (long, "left")) == ("", True)
    refused = client.ask("Where is the red box?", max_new_tokens=1000)
    assert "max_new_tokens is 1000, expected at most 10" in refused.error
