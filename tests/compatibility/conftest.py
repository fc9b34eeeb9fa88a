"""Fixtures that run the command line in the tests' own process."""

from tests.cli.conftest import _one_test_alone as _one_test_alone
from tests.cli.conftest import call as call
