"""What cannot be synced: a disk's error is told, and a file system that does not know it for folders is not."""

import errno
import os

import pytest

from cktrain.durable import sync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO, errno.ENOSPC])
def test_a_file_system_that_does_not_sync_folders_is_no_error(tmp_path, monkeypatch, number):
    def refused(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    file = tmp_path / "file"
    file.write_text("x")
    monkeypatch.setattr(os, "fsync", refused)
    before = len(os.listdir("/proc/self/fd"))
    if number in (errno.EINVAL, errno.ENOTSUP):
        sync(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(file)
    assert len(os.listdir("/proc/self/fd")) == before
