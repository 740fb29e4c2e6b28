"""Made-up machines for tests of binding and placement."""

from made_machines import make_sysfs  # noqa: F401  (a fixture)
