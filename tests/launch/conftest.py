"""Made-up machines for tests of what launch says of one."""

from made_machines import make_sysfs  # noqa: F401  (a fixture)
