"""The errors that callers get, one class per reason.

A class is the only place where a reason is described: `make errors` writes the exceptions of the SDK and the tables of
docs/errors.md from it. Its docstring says when the error occurs, `remedy` what a caller can do about it.
"""
# ruff: noqa: F403 - a list of the names would have to be kept in step with the modules

from fedround_server.domain.errors.family import *
from fedround_server.domain.errors.model import *
from fedround_server.domain.errors.request import *
from fedround_server.domain.errors.round import *
from fedround_server.domain.errors.training import *
from fedround_server.domain.errors.transfer import *
from fedround_server.domain.errors.user import *
