"""Chat templates of the text families: our own Jinja for the formats that the published checkpoints use."""

# [INST] turns with the system prompt inside the first of them; every user turn begins with <s>, every answer ends with </s>.
LLAMA2 = (
    "{% set ns = namespace(system='', turns=messages) %}"
    "{% if messages[0].role == 'system' %}"
    "{% set ns.system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set ns.turns = messages[1:] %}"
    "{% endif %}"
    "{% for turn in ns.turns %}"
    "{% if turn.role != ('user' if loop.index0 is even else 'assistant') %}"
    "{{ raise_exception('Turns must alternate, beginning with the user: got ' ~ turn.role) }}"
    "{% endif %}"
    "{% if turn.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (ns.system if loop.first else '') + turn.content.strip() + ' [/INST]' }}"
    "{% else %}"
    "{{ ' ' + turn.content.strip() + ' ' + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
)

# Headers with the role's name, every turn ended by <|eot_id|>.
LLAMA3 = """{{- bos_token }}
{%- for turn in messages %}
    {{- '<|start_header_id|>%s<|end_header_id|>\\n\\n' | format(turn['role']) }}
    {{- turn['content'] | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# [INST] turns without a space before [/INST]; the system prompt goes with the last user turn.
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- set asked = turns | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if turn["role"] == "user" %}
        {%- if system is defined and turn == asked | last and loop.index >= turns | length - 1 %}
            {{- "[INST] " + system + "\\n\\n" + turn["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + turn["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif turn["role"] == "assistant" %}
        {{- " " + turn["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant turns may follow the system prompt") }}
    {%- endif %}
{%- endfor %}
"""

# ChatML with a system prompt of its own where the conversation has none.
QWEN2 = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# ChatML; the thoughts of answers before the last question are left out, an empty thought switches thinking off.
QWEN3 = """{%- set ns = namespace(asked=-1) %}
{%- for message in messages[::-1] %}
    {%- if ns.asked < 0 and message.role == "user" and message.content is string %}
        {%- set ns.asked = messages | length - loop.index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.asked and (loop.last or thought) %}
            {{- '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') ~ '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
