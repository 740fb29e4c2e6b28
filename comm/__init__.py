"""Bytes between ranks: groups and their collectives.

This package imports nothing by itself, because `cktrain.comm.environment` is read before numpy loads (the
process is bound to its cores first). Import from the modules:

- `cktrain.comm.bootstrap`: `init`, `abort`
- `cktrain.comm.group`: `Group`, the contract
- `cktrain.comm.errors`: what can go wrong in the world
- `cktrain.comm.environment`: rank and size as the launcher tells them
"""
