"""What each tenant has been served: the virtual token counters of VTC (arXiv 2401.00588, Algorithm 2).

A counter is a whole number of a unit in which every price of a token is whole, so that tokens counted one by
one and many at a time come to the same, and two tenants who are level are so to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(slots=True)
class Account:
    """What one tenant has been served.

    Attributes
    ----------
    prompt_price, output_price
        Units of a token.
    served
        Units so far, what it was lifted by included.
    num_lines
        Queues in which requests of it wait.
    """

    prompt_price: int
    output_price: int
    served: int = 0
    num_lines: int = 0


class ServiceCounters:
    """The accounts of all tenants, and who of them waits.

    Parameters
    ----------
    prompt_weight, output_weight
        What a token of a prompt and one of an answer count.
    weights
        Of tenants, 1 where not given: one of weight 2 is served twice as much.

    Attributes
    ----------
    units_per_token
        Of a token that counts 1, of a tenant of weight 1.
    """

    def __init__(self, prompt_weight: float, output_weight: float, weights: Mapping[str, float]) -> None:
        exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
        tokens = (Fraction(str(prompt_weight)), Fraction(str(output_weight)))
        of_all = [token / weight for token in tokens for weight in (Fraction(1), *exact.values())]
        self.units_per_token = unit = math.lcm(*(price.denominator for price in of_all))
        self._prices = {
            name: tuple(int(token / weight * unit) for token in tokens) for name, weight in exact.items()
        }
        self._usual = tuple(int(token * unit) for token in tokens)
        self._accounts: dict[str, Account] = {}
        self._waiting: dict[str, Account] = {}
        self._last_left: Account | None = None

    def account(self, tenant: str) -> Account:
        """That of a tenant, new if it has none."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(*self._prices.get(tenant, self._usual))
        return account

    def enter(self, tenant: str, *, lifts: bool = True) -> Account:
        """A tenant begins to wait in a queue: nobody saves up while nothing of theirs waits.

        Its counter is lifted to the smallest of those who wait, or to that of the last who did.
        """
        account = self.account(tenant)
        if lifts and not account.num_lines:
            if self._waiting:
                account.served = max(account.served, min(one.served for one in self._waiting.values()))
            elif self._last_left is not None:
                account.served = max(account.served, self._last_left.served)
        account.num_lines += 1
        self._waiting[tenant] = account
        return account

    def leave(self, tenant: str) -> None:
        """Nothing of a tenant waits in a queue any more."""
        account = self._accounts[tenant]
        account.num_lines -= 1
        if not account.num_lines:
            self._last_left = self._waiting.pop(tenant)

    def served_tokens(self) -> dict[str, float]:
        """Weighted tokens over the weight of each tenant, lifts included."""
        return {name: account.served / self.units_per_token for name, account in self._accounts.items()}
