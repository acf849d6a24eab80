"""The command line: `generate` and `cascade ...`. The only place that prints.

A command is a module with NAME, HELP, `add_arguments(parser)` and `run(args)`; `main.COMMANDS` lists them. At its top a command
imports only what is quick to import, so that help and answers to mistyped requests come at once.
"""
