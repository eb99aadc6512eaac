"""The worker: confirms what was ordered, until it is interrupted."""

import time

from django.core.management.base import BaseCommand
from django.db import transaction
from django.utils import timezone

from orders.models import Order


class Command(BaseCommand):
    """`manage.py confirm`."""

    help = "confirms orders until it is interrupted"

    def handle(self, *args, **options):
        """Looks for new orders twice a second; an interruption never leaves half of one."""
        try:
            while True:
                with transaction.atomic():
                    for order in Order.objects.select_for_update(skip_locked=True).filter(confirmed_at=None)[:100]:
                        order.confirmed_at = timezone.now()
                        order.save(update_fields=["confirmed_at"])
                        self.stdout.write(f"confirmed {order.id}: {order.article}")
                time.sleep(0.5)
        except KeyboardInterrupt:
            self.stdout.write("interrupted; nothing is half done")
