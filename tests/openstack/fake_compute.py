"""nova-compute, whose driver only says that it runs virtual machines; these outlive it, as real ones do."""

from __future__ import annotations

from nova.cmd.compute import main
from nova.virt.fake import FakeDriver, FakeInstance

power_off, power_on = FakeDriver.power_off, FakeDriver.power_on


def recall(driver, instance):
    """One that an earlier process has said to run."""
    driver.instances.setdefault(instance.uuid, FakeInstance(instance.name, instance.power_state, instance.uuid))


def recalled_off(self, instance, *more, **options):
    recall(self, instance)
    power_off(self, instance, *more, **options)


def recalled_on(self, context, instance, *more, **options):
    recall(self, instance)
    power_on(self, context, instance, *more, **options)


FakeDriver.power_off, FakeDriver.power_on = recalled_off, recalled_on
main()
