"""Writes a template of `model/templates.py` as the Jinja text that transformers, vLLM and others read from a folder.

Rendered by them, it gives the text that our segments give, for training sequences and generation prompts alike. We never render a
template that came with a folder: what it does is up to its author.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from vistune.model.templates import Template

# `images` and `words` of a message: one picture of a user comes first and its text, stripped, on the next line (LLaVA's own rule).
_CONTENT = """\
{%- macro content(message) -%}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- elif message['role'] == 'user' and message['content'] | selectattr('type', 'equalto', 'image') | list | length == 1 -%}
{{- IMAGE -}}
{%- set words = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') | trim -%}
{%- if words -%}{{- '\\n' + words -}}{%- endif -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- IMAGE -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = content(messages[0]) -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = SYSTEM -%}
{%- set turns = messages -%}
{%- endif -%}
"""


def chat_template(template: Template, image_token: str) -> str:
    """The Jinja text of a template; `image_token` stands for one picture, however many tokens it becomes."""

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)  # also a Jinja string literal

    before, after = template.image_wrap
    image = quoted(before + image_token + after)
    head, user, assistant, reply, tail = _pieces(template, quoted, image)
    content = _CONTENT.replace("IMAGE", image).replace("SYSTEM", quoted(template.system))
    lines = [
        head,
        "{%- for turn in turns -%}",
        "{%- if turn['role'] == 'user' -%}",
        user,
        "{%- else -%}",
        assistant,
        "{%- endif -%}",
        "{%- endfor -%}",
        f"{{%- if add_generation_prompt -%}}{reply}{{%- else -%}}{tail}{{%- endif -%}}",
    ]
    return content + "\n".join(line for line in lines if line) + "\n"


def _pieces(template: Template, quoted: Callable[[str], str], image: str) -> tuple[str, str, str, str, str]:
    """Jinja for: what comes first, a user turn, an assistant turn, the opening of a reply, the end of a training sequence."""

    def say(*parts: str) -> str:
        return "{{- " + " + ".join(parts) + " -}}"

    def if_system(*parts: str) -> str:
        return "{%- if system -%}" + say(*parts) + "{%- endif -%}"

    content = "content(turn)"
    asks, answers = (quoted(role) for role in template.roles)
    sep, sep2 = quoted(template.sep), quoted(template.sep2)
    match template.style:
        case "single":
            opening = f"{template.sep} {template.roles[1]}:"
            question = say(quoted(f"{template.sep} {template.roles[0]}: "), content, quoted("\n"))
            reply = say(quoted(opening))
            return (
                if_system("system", quoted("\n\n")),
                question,
                say(quoted(opening + " "), content, quoted("\n")),
                reply,
                say(quoted(template.sep + " ")),
            )
        case "two":
            opening = f"{template.roles[1]}:"
            question = say(quoted(f"{template.roles[0]}: "), content, sep)
            return if_system("system", sep), question, say(quoted(opening + " "), content, sep2), say(quoted(opening)), ""
        case "llama_2":
            first = "{%- if loop.first -%}{{- '[INST] ' -}}" + if_system(quoted("<<SYS>>\n"), "system", quoted("\n<</SYS>>\n\n"))
            question = f"{first}{{%- else -%}}{say(quoted(f'{template.sep}[INST] '))}{{%- endif -%}}{say(content, quoted(' [/INST]'))}"
            return "", question, say(quoted(" "), content, quoted(f" {template.sep2}")), "", ""
        case "plain":
            return "", say(image), say(content, sep2), "", ""
        case "mpt" | "chatml":
            end = quoted(template.sep + ("\n" if template.style == "chatml" else ""))
            return (
                if_system(quoted(template.system_role), "system", end),
                say(asks, content, end),
                say(answers, content, end),
                say(answers),
                "",
            )
        case "llama_3":
            head = say(quoted("<|begin_of_text|>")) + if_system(quoted(template.system_role), "system", sep)
            return head, say(asks, content, sep), say(answers, content, sep), say(answers), ""
        case "gemma":
            end = quoted(template.stop + "\n")
            refuse = "{%- if system -%}{{- raise_exception('This template has no place for a system message.') -}}{%- endif -%}"
            return refuse, say(asks, content, end), say(answers, content, end), say(answers), ""
