"""Handlers of workers that wait for nobody long: HANDLER=tests.impatient:obey"""

import taskmanager
from tests.handlers import obey  # noqa: F401

taskmanager.STOP_SECONDS = 0.5
