"""What transformers makes of chat templates: templates.json.

By hand: what published templates do, one feature at a time. By chance, from a seed: templates of Jinja's grammar.
Where transformers fails, `text` is null, and so must the Rust tests.
"""

import copy
import json
import random
from pathlib import Path

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

FILE = Path(__file__).parent / "templates.json"
RANDOM = 300
LONGEST = 1200
TRIPPED = object()

VARIABLES = {
    "word": "Kiwi",
    "text": '  A red  cube,\na Blue-ball\n\nand it\'s "here" ',
    "accents": "Él—naïve ß",
    "empty": "",
    "n": 7,
    "zero": 0,
    "negative": -3,
    "f": 2.5,
    "yes": True,
    "no": False,
    "nothing": None,
    "words": ["pear", "Apple", "fig", "apple"],
    "numbers": [3, 1, 2, 1],
    "nested": [[1, 2], [3]],
    "bare": [],
    "about": {"name": "robot", "legs": 4, "parts": ["arm", "eye"]},
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cube."},
        {"role": "user", "content": "Of what <colour>?"},
    ],
}

BY_HAND = [
    "{{ word }}, {{ missing }}, {{ nothing }}, {{ yes }}, {{ f }}, {{ words }}, {{ about }}, {{ (1,) }}, {{ 1e20 }}, {{ 1e-7 }}",
    "  {% if yes %}\n  a\n  {% endif %}\nb\n",
    "  {%- if yes -%}  \n  a  \n  {%- endif -%}  \nb\n\n",
    "a  {%+ if yes %}  b{% endif +%}\n c",
    "{# comment #}\nx {#- y -#} z\n  {# w #}\n{%- raw %} {{ a }} {% b %}{%- endraw %}\n!",
    "x\r\ny\rz\r\n",
    (
        "{% for w in words %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.revindex0 }}"
        "{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }};{% endfor %}"
    ),
    "{% for w in words if w|length > 3 %}{{ loop.index }}{{ w }}{% else %}none{% endfor %}",
    "{% for w in bare %}x{% else %}none{% endfor %}{% for k, v in about.items() %}{{ k }}={{ v }},{% endfor %}",
    "{% for w in words %}{% if w == 'Apple' %}{% continue %}{% elif w == 'apple' %}{% break %}{% endif %}{{ w }} {% endfor %}",
    "{% for w in words %}{% set n = n + 1 %}{{ n }}{% endfor %}{{ n }}",
    (
        "{% set ns = namespace(n=0, seen=[]) %}{% for w in words %}{% set ns.n = ns.n + w|length %}"
        "{% set ns.seen = ns.seen + [w] %}{% endfor %}{{ ns.n }}{{ ns.seen }}"
    ),
    (
        "{% macro m(a, b='x', c=a) %}[{{ a }}{{ b }}{{ c }}{{ caller() if caller }}]{% endmacro %}"
        "{{ m(1) }}{{ m(1, c=3) }}{% call m(2) %}inside{% endcall %}"
    ),
    (
        "{% macro tree(items) %}{% for i in items %}{% if i is iterable %}({{ tree(i) }}){% else %}{{ i }}{% endif %}{% endfor %}"
        "{% endmacro %}{{ tree(nested) }}"
    ),
    "{% for i in nested recursive %}{{ loop.depth }}{% if i is iterable %}<{{ loop(i) }}>{% else %}{{ i }}{% endif %}{% endfor %}",
    "{% set x %}a {{ word }}{% endset %}{{ x|upper }}{% filter upper %}b{{ word }}{% endfilter %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
    "{{ messages[0].role }}{{ messages[-1]['content'] }}{{ messages[1:]|length }}{{ messages[::-1][0]['role'] }}{{ word[1:3] }}{{ word[-1] }}",
    (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}"
        "{% else %}{% set loop_messages = messages %}{% endif %}{{ loop_messages|length }}{{ system }}"
    ),
    "{% generation %}{{ word }}{% endgeneration %}!",
    (
        "{{ about|tojson }}{{ about|tojson(indent=2) }}{{ accents|tojson }}{{ accents|tojson(ensure_ascii=True) }}"
        "{{ about|tojson(separators=(',', ':')) }}{{ {'b': 1, 'a': [none, true, 1.0]}|tojson(sort_keys=True) }}"
    ),
    "{{ [1, {'a': []}]|tojson(indent=4) }}{{ '<a & \\'b\\'>'|tojson }}{{ {}|tojson(indent=1) }}",
    "{{ '%s is %d' % (word, n) }}{{ '%s' % word }}{{ '%5.2f|%-5s|%05d|%x|%%' % (f, word, n, 255) }}{{ '%(name)s' % about }}{{ '%r' % word }}",
    "{{ '%s-%s'|format(word, n) }}{{ '{} {0} {a}'.format(1, a=2) if no else '{}-{}'.format(word, n) }}",
    "{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.jinja'.removesuffix('.jinja') }}{{ word.removesuffix('') }}",
    "{{ text.strip() }}|{{ text.lstrip() }}|{{ text.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ text|trim }}",
    "{{ text.split() }}{{ 'a,b,,c'.split(',') }}{{ 'a,b,c'.split(',', 1) }}{{ 'a b  c'.rsplit(None, 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ text.splitlines() }}",
    "{{ word.startswith(('K', 'x')) }}{{ word.endswith('wi') }}{{ word.find('w') }}{{ word.count('i') }}{{ word.index('i') }}{{ word.rfind('i') }}",
    "{{ word.upper() }}{{ word.lower() }}{{ text.title() }}{{ accents.capitalize() }}{{ word.swapcase() }}{{ word.center(11, '*') }}{{ word.ljust(6) }}{{ '7'.zfill(3) }}",
    "{{ word.replace('i', 'oo') }}{{ word.replace('i', 'oo', 1) }}{{ ', '.join(words) }}{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}",
    "{{ '12'.isdigit() }}{{ 'a1'.isalnum() }}{{ ' '.isspace() }}{{ 'AB'.isupper() }}{{ 'ab'.islower() }}{{ word.isalpha() }}",
    "{{ about.keys()|list }}{{ about.values()|list }}{{ about.get('name') }}{{ about.get('x', 5) }}{{ about.get('x') }}{{ about.missing is defined }}",
    (
        "{{ words|join(', ') }}{{ words|first }}{{ words|last }}{{ words|length }}{{ words|sort|join }}{{ words|sort(reverse=true, case_sensitive=true)|join }}"
        "{{ words|unique|list }}{{ numbers|sum }}{{ numbers|min }}{{ numbers|max }}{{ words|reverse|list }}{{ word|reverse }}"
    ),
    (
        "{{ messages|map(attribute='role')|join(',') }}{{ words|map('upper')|list }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
        "{{ messages|rejectattr('role', 'in', ['user'])|map(attribute='role')|list }}{{ numbers|select('odd')|list }}{{ numbers|reject('odd')|list }}"
    ),
    "{{ numbers|batch(3)|list }}{{ numbers|batch(3, 'x')|list }}{{ about|dictsort }}{{ about|dictsort(reverse=true)|first }}{{ about|items|list }}",
    "{{ missing|default('d') }}{{ empty|default('d') }}{{ empty|default('d', true) }}{{ nothing|d('x', boolean=True) }}",
    "{{ text|indent }}{{ text|indent(2, true) }}{{ text|indent('> ', first=True, blank=True) }}",
    "{{ text|title }}{{ accents|upper }}{{ word|capitalize }}{{ '<a>'|e }}{{ 'a b/c?é'|urlencode }}{{ text|wordcount }}{{ text|truncate(9) }}{{ text|truncate(9, true, '~') }}",
    "{{ '42'|int + 1 }}{{ 'x'|int }}{{ 'x'|int(5) }}{{ '2.5'|float }}{{ 2.5|round }}{{ 2.675|round(2) }}{{ 2.1|round(0, 'ceil') }}{{ -3|abs }}{{ 3.9|int }}",
    "{{ 7 // 2 }}{{ -7 // 2 }}{{ 7 % 3 }}{{ -7 % 3 }}{{ 7 / 2 }}{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 7.5 % 2 }}{{ 1 + 2 * 3 - 4 }}{{ (1 + 2) * 3 }}{{ -n }}{{ true + 1 }}",
    "{{ 'ab' * 3 }}{{ 3 * 'ab' }}{{ [1] * 2 }}{{ 'a' + 'b' }}{{ [1] + [2] }}{{ 1 ~ 'b' ~ none ~ 2.0 }}",
    "{{ 1 < 2 < 3 }}{{ 1 < 2 > 3 }}{{ 'a' in word }}{{ 'i' in word }}{{ 3 not in numbers }}{{ 'name' in about }}{{ 1 == 1.0 }}{{ [1] == [1] }}{{ 'a' != 'b' }}",
    "{{ not yes }}{{ yes and 'x' }}{{ no or 'y' }}{{ empty and 1 }}{{ 'a' if no }}{{ 'a' if no else 'b' if no else 'c' }}{{ not no and yes }}",
    (
        "{{ word is string }}{{ n is integer }}{{ n is number }}{{ f is float }}{{ yes is boolean }}{{ nothing is none }}{{ about is mapping }}"
        "{{ words is sequence }}{{ word is iterable }}{{ n is odd }}{{ n is even }}{{ n is divisibleby 7 }}{{ missing is undefined }}"
        "{{ word is not defined }}{{ n is eq 7 }}{{ n is in numbers }}{{ yes is true }}{{ no is false }}{{ nothing is sameas none }}{{ word is lower }}"
    ),
    "{{ range(3)|list }}{{ range(1, 7, 2)|list }}{{ range(3, 0, -1)|list }}{{ dict(a=1, b=2) }}{{ (1, 2) }}{{ [] }}{{ {} }}{{ () }}",
    "{{ 'a\\n\\t\\\\ \\x41\\u00e9' }}{{ \"it's\" }}{{ ['it\\'s', 'a\"b', 'é\\n'] }}{{ 'a' 'b' }}{{ 0x1f }}{{ 1_000 }}{{ 1.5e3 }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d) = [3, 4] %}{{ c }}{{ d }}{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['content'] is string %}{{ m['content'] | trim + '\\n' }}"
        "{% else %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endif %}{% endfor %}"
    ),
    "{{ raise_exception('no system turns') }}",
    "{{ missing.attribute }}",
    "{{ 1 + 'a' }}",
    "{{ words.append('x') }}",
    "{{ range(1000000) }}",
    "{{ n() }}",
    "{{ word|nofilter }}",
    "{% for w in n %}{% endfor %}",
    "{% if yes %}",
    "{% endif %}",
    "{{ 'a }}",
    "{{ word[}}",
    "{%}",
    "{% include 'other' %}",
    "{{ 1 / 0 }}",
    "{% set ns = namespace(a=1) %}{% set word.a = 2 %}",
    "{{ nothing.x }}{{ nothing['x'] }}{{ n.x }}",
    "{{ words[9] }}{{ word['x'] }}{{ about[n] }}",
    "{{ nothing + 'a' }}",
    "{{ about.items()|list|length }}{{ messages[0]|length }}{{ {'a': 1}.a }}{{ {'items': 1}['items'] }}",
    "{{ word|tojson|length }}{{ missing|length }}{{ missing|list }}{{ missing ~ 'a' }}{{ missing == missing }}{{ 'a' in missing }}",
    "{{ (word, n)|join('-') }}{{ words|map('length')|sum }}{{ 'a-b'|replace('-', '+') }}{{ [3, 'a', none]|join('|') }}",
    "{% if word == 'Kiwi' and n > 3 or missing %}yes{% endif %}{{ (n > 3) ~ (n in [7]) }}",
    "{{- word -}}  {{- '!' -}}\n{{ word }}\n",
    "{% if yes -%}\n\n  a\n{%- else %}b{% endif %}\n{% if no %}c{%- endif -%}\n  d",
    "{{ text.split(none, 2) }}{{ text.rsplit(none, 2) }}{{ '  '.split() }}{{ ' a '.split(none, 1) }}{{ ' a b '.split(none, 0) }}",
    "{{ [nothing, nothing]|sort }}{{ nested.0.1 }}{{ nested.0.1 + 1.5 }}",
    "{{ [nothing, 1]|sort }}",
    (
        "{% for m in messages %}{{ m }}{{ m|tojson }}{{ m|tojson(indent=2) }}{{ m|items|list }}{{ m.keys()|list }}"
        "{% for key in m %}{{ key }}{% endfor %}{% endfor %}{{ messages|tojson }}"
    ),
]


class Grammar:
    """Templates by chance that mostly mean something."""

    def __init__(self, rng):
        self.rng = rng
        self.names = 0
        self.loops = 0

    def pick(self, *choices):
        return self.rng.choice(choices)

    def sign(self):
        return self.pick("", "", "", "-", "+")

    def tag(self, inner):
        end = self.pick("", "", "", "-")
        return "{%" + self.sign() + " " + inner + " " + end + "%}"

    def text(self):
        return self.pick("a", " b ", "\n", "  \n  ", "c\n", "\n\n  ", " ", "é", "")

    def body(self, depth):
        return "".join(self.statement(depth) for _ in range(self.rng.randint(1, 3)))

    def statement(self, depth):
        kinds = ["text", "text", "print", "print", "set", "comment"]
        if depth > 0:
            kinds += ["if", "for", "with", "block", "filter", "macro", "namespace", "generation"]
        if self.loops:
            kinds += ["leave"]
        kind = self.rng.choice(kinds)
        if kind == "text":
            return self.text()
        if kind == "print":
            return "{{" + self.pick("", "", "-") + " " + self.any(depth) + " " + self.pick("", "", "-") + "}}"
        if kind == "comment":
            return "{#" + self.pick("", "-") + " x " + self.pick("", "-") + "#}"
        if kind == "set":
            return self.tag(f"set extra = {self.any(depth)}")
        if kind == "leave":
            return self.tag("if " + self.truth(0)) + self.tag(self.pick("break", "continue")) + self.tag("endif")
        if kind == "if":
            other = self.pick("", self.tag("else") + self.body(depth - 1))
            return self.tag("if " + self.truth(depth)) + self.body(depth - 1) + other + self.tag("endif")
        if kind == "for":
            condition = self.pick("", "", " if item")
            self.loops += 1
            inner = (
                self.body(depth - 1) + "{{ item }}{{ loop." + self.pick("index", "first", "last", "revindex") + " }}"
            )
            self.loops -= 1
            other = self.pick("", self.tag("else") + self.text())
            return self.tag(f"for item in {self.list(depth)}{condition}") + inner + other + self.tag("endfor")
        loops, self.loops = self.loops, 0
        inner = self.body(depth - 1)
        self.loops = loops
        if kind == "with":
            return self.tag(f"with extra = {self.any(depth)}") + inner + self.tag("endwith")
        if kind == "block":
            return self.tag("set extra" + self.pick("", " | upper")) + inner + self.tag("endset") + "{{ extra }}"
        if kind == "filter":
            return (
                self.tag("filter " + self.pick("upper", "trim", "indent(2)", "replace('a', 'bb')"))
                + inner
                + self.tag("endfilter")
            )
        if kind == "generation":
            return self.tag("generation") + inner + self.tag("endgeneration")
        if kind == "namespace":
            space = f"space{self.names}"
            self.names += 1
            change = self.tag(f"set {space}.x = {space}.x ~ {self.string(1)}")
            return (
                self.tag(f"set {space} = namespace(x={self.string(1)})")
                + self.tag("for i in range(2)")
                + change
                + self.tag("endfor")
                + "{{ "
                + space
                + ".x }}"
            )
        macro = f"macro{self.names}"
        self.names += 1
        called = f"{{{{ {macro}({self.any(1)}) }}}}"
        return self.tag(f"macro {macro}(item, extra='x')") + inner + self.tag("endmacro") + called

    def any(self, depth):
        return getattr(self, self.pick("string", "string", "number", "truth", "list", "dict"))(depth)

    def string(self, depth):
        if depth <= 0:
            return self.pick(
                "word", "text", "accents", "empty", "'x'", '"it\'s"', "'a b c'", "about.name", "messages[0]['role']"
            )

        def one():
            return self.string(depth - 1)

        return self.rng.choice(
            [
                lambda: f"{one()} ~ {self.any(depth - 1)}",
                lambda: f"({one()} + {one()})",
                lambda: f"({one()} if {self.truth(depth - 1)} else {one()})",
                lambda: (
                    f"({one()})|{self.pick('upper', 'lower', 'title', 'capitalize', 'trim', 'e', 'string', 'reverse', 'urlencode')}"
                ),
                lambda: (
                    f"({one()}){self.pick('.strip()', '.upper()', '.lower()', '.title()', '.capitalize()', '.lstrip()', '.swapcase()')}"
                ),
                lambda: f"({one()}).replace({one()}, {one()})",
                lambda: f"({one()})|replace('a', {one()})",
                lambda: f"({one()}).{self.pick('removeprefix', 'removesuffix', 'strip', 'rstrip')}({one()})",
                lambda: f"({one()})[{self.pick('1:', ':2', '-2:', '::-1', '1:-1', '::2')}]",
                lambda: f"({self.list(depth - 1)})|join({one()})",
                lambda: (
                    f"({self.any(depth - 1)})|tojson{self.pick('', '(indent=2)', '(ensure_ascii=True)', '(sort_keys=True)')}"
                ),
                lambda: f"'%s-%s' % ({self.any(depth - 1)}, {self.any(depth - 1)})",
                lambda: f"'{self.pick('%d', '%05d', '%-4d|', '%x', '%.2f')}' % {self.pick('n', '12', 'zero')}",
                lambda: f"({one()})|{self.pick('indent', 'indent(1, true)', 'truncate(5)', 'center(9)')}",
                lambda: f"({one()}) * {self.pick('2', '0', '3')}",
                lambda: f"({self.list(depth - 1)})|{self.pick('first', 'last')}",
            ]
        )()

    def number(self, depth):
        if depth <= 0:
            return self.pick("n", "zero", "negative", "f", "1", "42", "2.25", "about.legs", "words|length")
        one = lambda: self.number(depth - 1)
        return self.rng.choice(
            [
                lambda: f"({one()} {self.pick('+', '-', '*', '/', '//', '%')} {one()})",
                lambda: f"({self.string(depth - 1)})|length",
                lambda: f"({self.list(depth - 1)})|length",
                lambda: f"({one()})|{self.pick('abs', 'int', 'float', 'round', 'round(1)')}",
                lambda: f"-{one()}",
                lambda: f"({self.string(depth - 1)}).{self.pick('find', 'count')}({self.string(0)})",
                lambda: "numbers|" + self.pick("sum", "min", "max", "first", "last"),
            ]
        )()

    def truth(self, depth):
        if depth <= 0:
            return self.pick(
                "yes",
                "no",
                "nothing",
                "missing",
                "item is defined",
                "word is string",
                "loop is defined",
                "n is odd",
                "words",
            )
        one = lambda: self.truth(depth - 1)
        return self.rng.choice(
            [
                lambda: f"({one()} {self.pick('and', 'or')} {one()})",
                lambda: f"not {one()}",
                lambda: (
                    f"({self.number(depth - 1)} {self.pick('<', '>', '==', '!=', '<=', '>=')} {self.number(depth - 1)})"
                ),
                lambda: f"({self.string(depth - 1)} {self.pick('<', '==', 'in', 'not in')} {self.string(depth - 1)})",
                lambda: f"({self.any(depth - 1)} {self.pick('==', '!=')} {self.any(depth - 1)})",
                lambda: f"({self.any(depth - 1)} in {self.list(depth - 1)})",
                lambda: (
                    f"({self.any(depth - 1)}) is {self.pick('', 'not ')}{self.pick('string', 'number', 'mapping', 'sequence', 'iterable', 'none', 'boolean', 'defined', 'integer', 'float')}"
                ),
                lambda: f"({self.string(depth - 1)}).{self.pick('startswith', 'endswith')}({self.string(0)})",
            ]
        )()

    def list(self, depth):
        if depth <= 0:
            return self.pick(
                "words", "numbers", "bare", "nested", "about.parts", "[1, 'a']", "range(3)|list", "missing"
            )
        one = lambda: self.list(depth - 1)
        return self.rng.choice(
            [
                lambda: f"({one()} + {one()})",
                lambda: f"[{self.any(depth - 1)}, {self.any(depth - 1)}]",
                lambda: f"({one()})[{self.pick('1:', ':2', '::-1', '-2:')}]",
                lambda: f"({one()})|{self.pick('reverse', 'batch(2)', 'list')}|list",
                lambda: f"({self.string(depth - 1)}).split({self.pick('', repr(' '), repr('a'), repr('a') + ', 1')})",
                lambda: f"({self.string(depth - 1)}).splitlines()",
                lambda: f"({one()})|map('{self.pick('string', 'length', 'tojson')}')|list",
                lambda: f"({one()})|{self.pick('select', 'reject')}('{self.pick('string', 'number', 'defined')}')|list",
                lambda: "words|sort" + self.pick("", "(reverse=true)", "(case_sensitive=true)"),
                lambda: "messages|map(attribute='role')|list",
                lambda: f"({self.dict(depth - 1)}).{self.pick('keys', 'values', 'items')}()|list",
                lambda: f"({self.dict(depth - 1)})|dictsort",
            ]
        )()

    def dict(self, depth):
        if depth <= 0:
            return self.pick("about", "{}", "messages[0]", "{'a': 1}")
        return self.rng.choice(
            [
                lambda: f"{{'a': {self.any(depth - 1)}, {self.string(0)}: {self.any(depth - 1)}}}",
                lambda: f"dict(x={self.any(depth - 1)}, y={self.any(depth - 1)})",
            ]
        )()


def rendered(template):
    try:
        return _compile_jinja_template(template).render(**copy.deepcopy(VARIABLES))
    except NameError:
        # A name that is set later on, which the code that Jinja makes of the template trips over.
        return TRIPPED
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def main():
    rng = random.Random(14)
    cases = [{"template": template, "text": rendered(template)} for template in BY_HAND]
    while len(cases) < len(BY_HAND) + RANDOM:
        template = Grammar(rng).body(3)
        text = rendered(template)
        if text is TRIPPED:
            continue
        # Objects are printed with their addresses.
        if len(template) + len(text or "") <= LONGEST and " object at 0x" not in (text or ""):
            cases.append({"template": template, "text": text})
    about = {"variables": VARIABLES, "cases": cases}
    FILE.write_text(json.dumps(about, ensure_ascii=False, indent=0) + "\n")
    failing = sum(case["text"] is None for case in cases)
    print(f"{len(cases)} templates, of which {failing} fail, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
