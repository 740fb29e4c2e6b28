"""`cktrain chat MODEL`: a conversation in the terminal, or with whoever writes lines into standard input.

A line is a message. /reset begins again, /save FILE appends the conversation to FILE as a row of chat data, /exit or Ctrl-D
ends; a message that begins with / is written with //. Ctrl-C ends an answer, and not the program.

Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cktrain.best_effort import append_line
from cktrain.launch import arguments
from cktrain.launch.commands.generate import (
    EXIT_INTERRUPTED,
    add_model_arguments,
    add_sampling_arguments,
    as_utf8,
    new_sampler,
    open_bound_model,
    stop_strings,
)
from cktrain.launch.terminal import needed_output, read_line, write
from cktrain.user_path import user_path

if TYPE_CHECKING:
    from cktrain.generation.chat import ChatSession
    from cktrain.generation.sampler import Sampler

COMMANDS = "/reset, /save FILE, /exit (or Ctrl-D)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain chat`."""
    add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="system prompt; default: what the template says")
    parser.add_argument(
        "--chat-template",
        type=arguments.path,
        metavar="NAME|FILE",
        help="chatml, llama3, plain or a file; default: the model's own",
    )
    parser.add_argument(
        "--max-tokens", type=arguments.whole(1, 2**31 - 1), default=1024, help="of an answer (default 1024)"
    )
    parser.add_argument(
        "--context",
        type=arguments.whole(2, 2**31 - 1),
        help="tokens of conversation and answer; default: 8192, or the model's positions if fewer",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="say of each answer its tokens, and what was not read again"
    )
    add_sampling_arguments(parser, temperature=0.8)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    needed_output("chat")
    if sys.stdin is None:
        raise ValueError("[chat] standard input is closed, and messages come from there. Open it.")
    stops = stop_strings(options)
    model = open_bound_model(options)
    from cktrain.generation.chat import ChatSession

    prompt = model.chat_prompt(options.chat_template)
    system = None if options.system is None else as_utf8(options.system)
    session = ChatSession(
        model, prompt, system=system, context=options.context, max_tokens=options.max_tokens
    )
    _say(f"{model.path}: {session.context:,} tokens of context; {COMMANDS}")
    return _talk(session, options, stops)


def _talk(session: ChatSession, options: argparse.Namespace, stops: list[str]) -> int:
    terminal = sys.stdin.isatty()
    sampler = new_sampler(options)
    while True:
        try:
            line = read_line("> ")
            if line is None:
                break
            if not line.strip():
                continue
            if line.startswith("/") and not line.startswith("//"):
                if line.split()[0] == "/exit":
                    return 0
                if _command(session, line):
                    sampler = new_sampler(options)
                continue
            _answer(
                session, line.removeprefix("/") if line.startswith("//") else line, sampler, stops, options
            )
        except KeyboardInterrupt:
            if not terminal:
                return EXIT_INTERRUPTED
            _say("\n(/exit or Ctrl-D ends)")
        except ValueError as error:
            _say(f"cktrain: {error}")
    if terminal:
        _say("")
    return 0


def _answer(
    session: ChatSession, text: str, sampler: Sampler, stops: list[str], options: argparse.Namespace
) -> None:
    """Write the answer to a message as it is made. An interrupt ends it alone."""
    answer = session.ask(text, sampler, stops)
    if answer.left_out:
        _say(
            f"(the {session.left_out} oldest messages no longer fit into {session.context:,} tokens, and are left out)"
        )
    start, first = time.perf_counter(), None
    try:
        for piece in answer:
            first = first or time.perf_counter()
            write(piece)
        write("\n")
    except KeyboardInterrupt:
        write("\n")
        _say("(stopped)" if answer.join() else "(stopped before the answer began; the message is not kept)")
    if answer.finish in ("length", "positions"):
        what = f"--max-tokens {session.max_tokens:,}" if answer.count == session.max_tokens else "the context"
        _say(f"(cut after {answer.count:,} tokens by {what})")
    if options.verbose and first is not None:
        seconds = time.perf_counter() - first
        rate = f", then {(answer.count - 1) / seconds:.1f} tokens/s" if answer.count > 1 else ""
        _say(
            f"({answer.prompt_tokens:,} tokens before it, {answer.reused:,} of them not read again; the first after "
            f"{first - start:.2f} s{rate})"
        )


def _command(session: ChatSession, line: str) -> bool:
    """Do what a line that begins with / asks for; returns whether the conversation begins again."""
    name, _, rest = line.strip().partition(" ")
    if name == "/reset":
        session.reset()
        _say("(a new conversation)")
        return True
    if name == "/save" and rest.strip():
        _save(session, rest.strip())
    else:
        _say(f"{name} is none of {COMMANDS}; a message that begins with / is written with //")
    return False


def _save(session: ChatSession, name: str) -> None:
    """Append the conversation as a row of chat data."""
    if not any(message["role"] == "assistant" for message in session.messages):
        _say("(nothing was said yet, and nothing is saved)")
        return
    row = json.dumps({"messages": session.messages}, ensure_ascii=False)
    try:
        path = Path(user_path(name))
        append_line(path, row.encode("utf-8"))
    except OSError as error:
        _say(f"cktrain: [chat] {name}: {error.strerror}. Name another file.")
        return
    _say(f"({len(session.messages)} messages appended to {path})")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
