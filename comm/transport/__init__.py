"""Carriers of bytes between ranks, one module each."""
