"""Chat templates: as transformers renders them, by a worker that is held to limits of memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from monograph.frontends.chat import ChatRenderer
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir.errors import ConfigError, MonographError, RuntimeInputError
from tokenizers import models

CORE = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate("abcdefgh<>|")}, []))
TOOLS = [{"type": "function", "function": {"name": "wetter", "description": "für Köln <b>", "parameters": {}}}]
HI = [{"role": "user", "content": "Hi"}]
CALL = [*HI, {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": {"x": "é"}}}]}]
THOUGHT = [*HI, {"role": "assistant", "content": "a", "thinking": "t"}]
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "letters as they are": (
        "{% for t in tools %}{{ t | tojson(ensure_ascii=False) }}\n{% endfor %}",
        HI,
        {"tools": TOOLS},
    ),
    "letters escaped": ("{{ tools | tojson(ensure_ascii=True) }}", HI, {"tools": TOOLS}),
    "by position": ("{{ tools | tojson(True, 2) }}", HI, {"tools": TOOLS}),
    "indented": ("{{ tools | tojson(indent=4) }}", HI, {"tools": TOOLS}),
    "separators": ("{{ tools | tojson(separators=(',', ':')) }}", HI, {"tools": TOOLS}),
    "sorted": ("{{ tools | tojson(sort_keys=True) }}", HI, {"tools": TOOLS}),
    "arguments of a call": ("{{ messages[1].tool_calls[0].function.arguments | tojson }}", CALL, {}),
    "no content is not said": ("{% for m in messages %}{{ 'content' in m }}{% endfor %}", CALL, {}),
    "no content, tested": ("{% for m in messages %}{% if m.content %}{{ m.content }}{% endif %}{% endfor %}", CALL, {}),
    "thoughts by another name": ("{{ messages[1].reasoning_content }}{{ messages[1].thinking }}", THOUGHT, {}),
    "tokens that there are": ("{{ eos_token }}{{ bos_token is defined }}{{ pad_token }}", HI, {}),
    "generation": ("{% for m in messages %}x{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", HI, {}),
    "a year": ("{{ strftime_now('%Y') }}", HI, {}),
    "loop controls": ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", HI, {}),
    "a namespace": ("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}{{ dict(b=1) }}", HI, {}),
    "blocks trimmed": ("  {% if true %}\n  a\n  {% endif %}\nb", HI, {}),
    "no prompt": ("{% if add_generation_prompt %}p{% endif %}", HI, {}),
    "named functions": ("{{ tools is none }}{{ documents is none }}", HI, {}),
}


def chat(template: Any, messages: Any, **variables: Any) -> str:
    settings = {"chat_template": template, "eos_token": "|"}
    return Tokenizer(CORE, settings).chat(messages, add_generation_prompt=False, **variables)


@pytest.mark.parametrize("name", CASES)
def test_a_template_gives_what_transformers_gives(name: str) -> None:
    template, messages, variables = CASES[name]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=CORE, eos_token="|")
    want = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **variables)
    assert chat(template, messages, **variables) == want


BAD: dict[str, tuple[str, Any, str]] = {
    "no content": (
        "{{ 'a' + messages[0].content }}",
        [{"role": "user", "content": None}],
        "message 0 (user) has no content",
    ),
    "a list": (
        "{{ 'a' + messages[0].content }}",
        [{"role": "user", "content": [1]}],
        "content that is a list, not a text",
    ),
    "a number": ("{{ messages[0].content.strip() }}", [{"role": "user", "content": 5}], "content that is a int"),
    "division": ("{{ 1 / 0 }}", HI, "ZeroDivisionError"),
    "an include": ("{% include 'x' %}", HI, "no loader"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", HI, "calls itself without end"),
    "a range": ("{% for i in range(10**9) %}x{% endfor %}", HI, "Range too big"),
    "a text of 10 GB": ("{{ 'a' * 10**10 }}", HI, "needs too much memory"),
    "a list of 10 GB": ("{{ [0] * 10**10 }}", HI, "needs too much memory"),
    "a long form": ("{{ '%100000000000d' % 1 }}", HI, "needs too much memory"),
    "a long row": ("{{ 'a'.center(10**11) }}", HI, "needs too much memory"),
    "doubling": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        HI,
        "needs too much memory",
    ),
    "a prompt of 30 MB": ("{{ 'a' * 30000000 }}", HI, "needs too much memory: 30000000 characters"),
    "the inside of Python": ("{{ ''.__class__.__mro__ }}", HI, "is unsafe"),
    "a refusal": ("{{ raise_exception('only user') }}", HI, "refuses these messages: only user"),
    "an unknown name": ("{{ a.b }}", HI, "'a' is undefined"),
    "a break outside": ("{% break %}", HI, "fails on these messages: SyntaxError"),
    "a message that is a text": ("x", ["hi"], "message 0 is 'hi', expected an object with role and content"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_fails_is_one_typed_error(name: str) -> None:
    template, messages, message = BAD[name]
    with pytest.raises(RuntimeInputError) as e:
        chat(template, messages)
    assert message in str(e.value)


def test_a_broken_template_is_named_with_its_line() -> None:
    for template, message in (("a\n{% if %}", "is broken in line 2"), ("{{ 'a' | nofilter }}", "No filter named")):
        with pytest.raises(ConfigError, match=message):
            chat(template, HI)
    with pytest.raises(ConfigError, match="chat_template is 5, expected a text"):
        chat(5, HI)


def test_time_is_limited_and_the_next_template_works() -> None:
    renderer = ChatRenderer(seconds=1.0)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(RuntimeInputError, match="has not ended after 1 seconds"):
        renderer.render(endless, HI, {})
    assert renderer.render("{{ messages[0].content }}", HI, {}) == ("Hi", [])


def test_what_cannot_be_written_as_json_is_named_or_becomes_a_name() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(MonographError, match="nested more than 100 deep"):
        chat("x", HI, x=deep)
    assert chat("{{ x }}", HI, x=object()) == "<object>"


def test_generation_blocks_are_told_by_their_place() -> None:
    template = "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}|{% endgeneration %}\n{% endfor %}"
    text, spans = ChatRenderer().render(template, [*HI, {"role": "assistant", "content": "ä b"}], {})
    assert text == "user:Hi|assistant:ä b|"
    assert [text[a:b] for a, b in spans] == ["Hi|", "ä b|"]


def test_threads_share_a_worker_and_a_forked_process_has_its_own() -> None:
    renderer, found = ChatRenderer(), list[str]()

    def run(i: int) -> None:
        found.append(renderer.render(f"{i}{{{{ messages[0].content }}}}", HI, {})[0])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(found) == [f"{i}Hi" for i in range(8)]
    child = os.fork()
    if child == 0:
        os._exit(0 if renderer.render("a", HI, {})[0] == "a" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert renderer.render("b", HI, {})[0] == "b"


def test_an_endless_template_ends_though_its_parent_is_gone(tmp_path: Path) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    code = (
        "from monograph.frontends.chat import ChatRenderer\n"
        "import os, threading\n"
        "r = ChatRenderer(seconds=1.0)\n"
        "r.render('a', [], {})\n"
        "print(r._worker.process.pid, flush=True)\n"
        "threading.Timer(0.3, lambda: os.kill(os.getpid(), 9)).start()\n"
        f"r.render({endless!r}, [], {{}})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    worker = int(done.stdout)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").exists() and ") Z" in Path(f"/proc/{worker}/stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"worker {worker} still runs")


def test_an_interrupted_prompt_is_not_taken_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = ChatRenderer()
    assert renderer.render("a", HI, {})[0] == "a"
    with monkeypatch.context() as patch:
        patch.setattr("monograph.frontends.chat.json.loads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            renderer.render("b", HI, {})
    assert renderer.render("c", HI, {})[0] == "c"


def interrupted(text: str) -> None:
    raise KeyboardInterrupt
