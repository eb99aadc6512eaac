"""An order: what somebody wants, and when the worker confirmed it."""

from django.db import models


class Order(models.Model):
    """What somebody ordered."""

    article = models.CharField(max_length=100)
    ordered_at = models.DateTimeField(auto_now_add=True)
    confirmed_at = models.DateTimeField(null=True)
