"""Chat templates of the shapes that models have, with `{% generation %}` around answers, and conversations for them."""

from __future__ import annotations

import re

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}
{{ message.content + '<|im_end|>' }}
{%- endif %}
{{ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
LLAMA_3 = """\
{{- bos_token }}
{%- if strftime_now is defined %}{% set date = '26 Jul 2024' %}{% else %}{% set date = '26 Jul 2024' %}{% endif %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + 'Today Date: ' + date + '\n\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}{{ '<|eot_id|>' }}{% endgeneration %}
{%- else %}{{ message.content | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""
LLAMA_2 = """\
{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}
{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}
{%- for message in loop_messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message.role == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + message.content.strip() + ' [/INST]' }}
{%- else %}{% generation %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}
"""
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'system' %}{{ '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'tool' %}{{ '[INST]' + message.content + '[/INST]' }}
{%- else %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}
"""
GEMMA = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' + role + '\n' }}
{%- if role == 'model' %}{% generation %}{{ message.content | trim + '<end_of_turn>' }}{% endgeneration %}{{ '\n' }}
{%- else %}{{ message.content | trim + '<end_of_turn>\n' }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""
ZEPHYR = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
{{ '<|assistant|>\n' }}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{{ '\n' }}
{%- else %}
{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}
{%- endif %}
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
{% endfor %}
"""
# With tools, calls and answers of tools, and thoughts that only the answers after the last question keep.
QWEN = """\
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
{{- '# Tools\n<tools>' }}{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- generation %}
{%- set content = message.content or '' %}
{%- set thought = message.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\n' }}
{%- elif message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
SHAPES = {
    "chatml": CHATML, "llama-3": LLAMA_3, "llama-2": LLAMA_2, "mistral": MISTRAL, "gemma": GEMMA, "zephyr": ZEPHYR, "qwen": QWEN,
}  # fmt: skip
CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
    "<start_of_turn>", "<end_of_turn>", "<|assistant|>", "<|user|>", "<|system|>", "<|tool|>",
)  # fmt: skip
SYSTEM = {"role": "system", "content": "Be brief, it's late."}
QUESTION = {"role": "user", "content": "  What is 2+2?\nAnd naïve?  "}
ANSWER = {"role": "assistant", "content": "It's 4, naïve 🤦🏽 one. "}
SECOND = {"role": "user", "content": "And the capital of France"}
THIRD = {"role": "assistant", "content": "Paris\n\n it is"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "look_up", "arguments": {"of": "Ü2", "at": [1, 2]}}}],
}
RESULT = {"role": "tool", "content": '{"degrees": 21}'}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks it up", "parameters": {"type": "object"}}}]
THOUGHT = {"role": "assistant", "content": "<think>\nhard one\n</think>\n\nIt's 4."}
CONVERSATIONS = {
    "one turn": {"messages": [QUESTION, ANSWER]},
    "several turns": {"messages": [QUESTION, ANSWER, SECOND, THIRD]},
    "system": {"messages": [SYSTEM, QUESTION, ANSWER, SECOND, THIRD]},
    "ends with a question": {"messages": [QUESTION, ANSWER, SECOND]},
    "tools": {"messages": [SYSTEM, QUESTION, CALL, RESULT, RESULT, ANSWER, SECOND, THIRD], "tools": TOOLS},
    "thoughts": {"messages": [QUESTION, THOUGHT, SECOND, THOUGHT]},
}


def without_tags(template: str) -> str:
    """A template as most models have it: it does not say what is the assistant's."""
    template = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", template)
