"""An order: the cart is validated, payment and stock are taken care of side by side, then it is shipped and confirmed.

The payment gateway and the warehouse are pretended, so that the example needs nothing else; what matters is how a real
one would be called. A step can run more than once (a worker may die after the work and before its result is recorded),
so whatever has an effect outside carries a key made of the task's id: the other side sees the same key again and does
the thing once.
"""

import asyncio
import uuid
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated

from pydantic import BaseModel, Field, PlainSerializer

from tasker_worker import PermanentError, StepContext, StepHandler, StepResult, depends_on, inputs, step_handler
from tasker_worker.errors import NetworkError, ValidationError

TAX_RATE = Decimal("0.08")
CENT = Decimal("0.01")
# Computed as decimals, written as JSON numbers: 0.1 + 0.2 must not become 0.30000000000000004 on an invoice.
Money = Annotated[Decimal, PlainSerializer(float, return_type=float, when_used="json")]


class Item(BaseModel):
    """One line of a cart."""

    product: str
    price: Annotated[Money, Field(ge=0)]
    quantity: Annotated[int, Field(ge=1)]


class Cart(BaseModel):
    """A validated cart. Amounts are in dollars, rounded to cents."""

    items: list[Item]
    item_count: int
    subtotal: Money
    tax: Money
    total: Money


class Payment(BaseModel):
    """A charge that went through."""

    transaction_id: str
    amount: Money


def key_for(context: StepContext, what: str) -> str:
    """The same text for every attempt at this step of this task, and for no other."""
    return str(uuid.uuid5(uuid.UUID(context.task_uuid), f"{context.step_name}/{what}"))


@step_handler("validate_cart")
@inputs("cart_items")
def validate_cart(cart_items: list[Item]) -> Cart:
    """Add the cart up: subtotal, 8 % tax rounded to cents, total, number of items.

    Safe to run twice: it only computes.
    """
    if not cart_items:
        raise ValidationError("the cart is empty")
    subtotal = sum((item.price * item.quantity for item in cart_items), Decimal(0)).quantize(CENT, ROUND_HALF_UP)
    tax = (subtotal * TAX_RATE).quantize(CENT, ROUND_HALF_UP)
    return Cart(
        items=cart_items,
        item_count=sum(item.quantity for item in cart_items),
        subtotal=subtotal,
        tax=tax,
        total=subtotal + tax,
    )


@step_handler("process_payment")
@inputs("payment_token")
@depends_on(cart="validate_cart")
async def process_payment(cart: Cart, context: StepContext, payment_token: str = "tok_test_success") -> Payment:  # noqa: S107
    """Charge the total. Safe to run twice: the gateway takes one charge a key."""
    transaction_id = await charge(
        payment_token,
        cart.total,
        idempotency_key=key_for(context, "charge"),
        seconds=context.get_config("gateway_seconds", 0),
        outage=context.attempt <= context.get_config("outage_attempts", 2),
    )
    return Payment(transaction_id=transaction_id, amount=cart.total)


async def charge(token: str, amount: Decimal, *, idempotency_key: str, seconds: float, outage: bool) -> str:
    """The pretended gateway: what it does depends on the token. `outage` is whether it is away for the flaky one."""
    await asyncio.sleep(seconds)
    match token:
        case "tok_test_declined":
            # Trying again cannot help, so the step fails for good.
            raise PermanentError(f"the card was declined for a charge of {amount} dollars")
        case "tok_test_flaky" if outage:
            # Trying again may help: the template's retry says how often and after what delay.
            raise NetworkError("the payment gateway did not answer")
        case _:
            return f"txn_{idempotency_key}"


class UpdateInventory(StepHandler):
    """Reserve every item of the cart. Safe to run twice: the warehouse keeps one reservation a key.

    What is in stock comes from the template (`initialization.stock`), in place of a warehouse.
    """

    handler_name = "update_inventory"
    handler_version = "1.0.0"

    def call(self, context: StepContext) -> StepResult:
        cart = context.get_dependency_result("validate_cart", Cart)
        if cart is None:
            raise ValidationError("update_inventory needs the result of validate_cart")
        stock: dict[str, int] = context.get_config("stock", {})
        for item in cart.items:
            available = stock.get(item.product, 0)
            if item.quantity > available:
                raise PermanentError(
                    f"insufficient stock for {item.product}: requested {item.quantity}, available {available}"
                )
        reservations = [
            {"product": item.product, "quantity": item.quantity, "reservation_id": key_for(context, item.product)}
            for item in cart.items
        ]
        return self.success({"reservations": reservations}, metadata={"reserved_items": cart.item_count})


@step_handler("create_shipment")
@inputs("address")
@depends_on(payment="process_payment", inventory="update_inventory")
def create_shipment(
    payment: Payment, inventory: dict[str, list[dict[str, str | int]]], address: str, context: StepContext
) -> dict[str, object]:
    """Hand the reserved items to the carrier. It starts when both payment and inventory are done.

    Safe to run twice: the tracking number is made of the task's id, so the second call asks for the same parcel.
    """
    return {
        "tracking_number": f"trk_{key_for(context, 'parcel')}",
        "address": address,
        "paid_by": payment.transaction_id,
        "parcels": [{"product": each["product"], "quantity": each["quantity"]} for each in inventory["reservations"]],
    }


@step_handler("send_confirmation")
@inputs("email")
@depends_on(cart="validate_cart", shipment="create_shipment")
def send_confirmation(cart: Cart, shipment: dict[str, object], email: str, context: StepContext) -> dict[str, object]:
    """Tell the buyer. Results of all steps before this one can be read, not only those of its direct parents.

    Safe to run twice: a mail service drops a second message with the same id.
    """
    return {
        "message_id": key_for(context, email),
        "to": email,
        "text": f"{cart.item_count} items for {cart.total} dollars are on their way: {shipment['tracking_number']}",
    }
