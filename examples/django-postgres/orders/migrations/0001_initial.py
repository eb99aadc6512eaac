"""The table of orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first state."""

    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("article", models.CharField(max_length=100)),
                ("ordered_at", models.DateTimeField(auto_now_add=True)),
                ("confirmed_at", models.DateTimeField(null=True)),
            ],
        ),
    ]
