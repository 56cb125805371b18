"""What options exist and what is wrong with a config; scripts import UserError from here."""

from diffseg_jax.errors import UserError as UserError
