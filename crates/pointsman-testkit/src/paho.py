"""An MQTT client on Eclipse Paho (paho-mqtt 1.6), driven through a socket by one JSON object a line.

In comes {"id": 1, "do": "publish", ...}; out go {"id": 1, ...}, the answer, and besides {"message": ...} and {"event": ...}.
Bytes are strings of the code points 0 to 255. See paho.rs for what can be asked.
"""

import json
import os
import socket
import sys
import threading
import traceback

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

# Our names of a message's properties, and Paho's.
PROPERTIES = {
    "response_topic": "ResponseTopic",
    "correlation_data": "CorrelationData",
    "content_type": "ContentType",
    "payload_format": "PayloadFormatIndicator",
    "message_expiry": "MessageExpiryInterval",
    "user_properties": "UserProperty",
    "subscription_identifiers": "SubscriptionIdentifier",
    "topic_alias": "TopicAlias",
}


class ReasonedClient(mqtt.Client):
    """Paho 1.6 reads the reasons in PUBACK, PUBREC, PUBCOMP and DISCONNECT, and tells nobody. This keeps them.

    And it says that it is connected after it has sent what was in flight, so that what comes next cannot overtake that.
    """

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.reasons = {}
        self.disconnect_reason = None
        self.on_connected = None
        self.connack = None
        self.on_connect = self.keep_connack

    @staticmethod
    def keep_connack(client, _data, flags, reason, properties=None):
        client.connack = {
            "reason": int_of(reason),
            "session_present": bool(flags["session present"]),
            "properties": properties.json() if properties else {},
        }

    def _handle_connack(self):
        result = super()._handle_connack()
        connack, self.connack = self.connack, None
        if connack:
            self.on_connected(self, connack)
        return result

    def _note_reason(self):
        packet = self._in_packet["packet"]
        mid = int.from_bytes(packet[:2], "big")
        reason = packet[2] if len(packet) > 2 else 0
        self.reasons[mid] = self.reasons.get(mid) or reason
        return mid, reason

    def _handle_pubackcomp(self, cmd):
        self._note_reason()
        return super()._handle_pubackcomp(cmd)

    def _handle_pubrec(self):
        mid, reason = self._note_reason()
        if reason < 0x80:
            return super()._handle_pubrec()
        # A refusal ends the exchange; Paho would go on.
        with self._out_message_mutex:
            return self._do_on_publish(mid) if mid in self._out_messages else mqtt.MQTT_ERR_SUCCESS

    def _handle_pubrel(self):
        """As Paho's own, but that counts what has come as if it was something sent that is through: a client with QoS 2 in both
        directions would send more at once than the broker takes, and brokers lose some of that."""
        mid = int.from_bytes(self._in_packet["packet"][:2], "big")
        with self._in_message_mutex:
            message = self._in_messages.pop(mid, None)
        if message:
            self._handle_on_message(message)
        return self._send_pubcomp(mid)

    def _handle_disconnect(self):
        packet = self._in_packet["packet"]
        self.disconnect_reason = packet[0] if packet else 0
        # Paho itself would let the connection be when there is nothing but a reason.
        return mqtt.MQTT_ERR_CONN_LOST


class Driver:
    """What the test asks for, done with one client at a time."""

    def __init__(self, commands, stream):
        self.commands = commands
        self.stream = stream
        self.writing = threading.Lock()
        self.client = None
        self.protocol = mqtt.MQTTv5
        self.reconnects = False
        # Guards what follows; never held while Paho is called, because Paho calls back with its own locks held.
        self.lock = threading.Lock()
        self.connecting = None
        self.connected = False  # unlike Paho's own, false before anybody is told of the end
        self.waiting = {}  # mid -> the command that waits for its acknowledgement, and whether that may come by a reconnection
        self.early = {}  # mid -> an acknowledgement that came before the command knew its mid
        self.echo = None
        self.envelope = None

    def run(self):
        for line in self.commands:
            command = json.loads(line)
            try:
                getattr(self, "do_" + command["do"])(command)
            except (OSError, ValueError) as error:
                with self.lock:
                    self.connecting = None
                self.say(id=command["id"], error=str(error))

    def say(self, **what):
        line = json.dumps(what) + "\n"
        with self.writing:
            self.stream.write(line)
            self.stream.flush()

    # Commands.

    def do_connect(self, command):
        if self.client:
            self.client.disconnect()
        options = command["options"]
        self.protocol = options["protocol"]
        self.reconnects = options["reconnect"]
        v5 = self.protocol == mqtt.MQTTv5
        client = ReasonedClient(
            client_id=options["client_id"],
            clean_session=None if v5 else options["clean"],
            protocol=self.protocol,
            reconnect_on_failure=self.reconnects,
        )
        client.reconnect_delay_set(min_delay=0.1, max_delay=1)
        if options["max_inflight"] is not None:
            client.max_inflight_messages_set(options["max_inflight"])
        if options["user"]:
            client.username_pw_set(*options["user"])
        if options["ca"]:
            client.tls_set(options["ca"])
        will = options["will"]
        if will:
            properties = message_properties(will, PacketTypes.WILLMESSAGE) if v5 else None
            client.will_set(will["topic"], to_bytes(will["payload"]), will["qos"], will["retain"], properties)
        client.on_connected = self.on_connected
        client.on_disconnect = self.on_disconnect
        client.on_message = self.on_message
        client.on_publish = lambda _client, _data, mid: self.acknowledged(mid, reason=client.reasons.pop(mid, 0))
        client.on_subscribe = lambda _client, _data, mid, codes, _properties=None: self.acknowledged(
            mid, reason=int_of(codes[0])
        )
        client.on_unsubscribe = lambda _client, _data, mid, _properties=None, codes=None: self.acknowledged(
            mid, reason=int_of(codes) if codes else 0
        )
        with self.lock:
            self.client, self.connecting = client, command["id"]
            self.connected, self.waiting, self.early = False, {}, {}
        more = {}
        if v5:
            properties = Properties(PacketTypes.CONNECT)
            if options["session_expiry"] is not None:
                properties.SessionExpiryInterval = options["session_expiry"]
            if options["receive_maximum"] is not None:
                properties.ReceiveMaximum = options["receive_maximum"]
            clean = mqtt.MQTT_CLEAN_START_FIRST_ONLY if options["clean"] else False
            more = {"clean_start": clean, "properties": properties}
        client.connect(options["host"], options["port"], options["keepalive"], **more)
        client.loop_start()

    def do_reconnect(self, command):
        self.client.loop_stop()
        with self.lock:
            self.connecting = command["id"]
        self.client.reconnect()
        self.client.loop_start()

    def do_disconnect(self, command):
        with self.lock:
            connected = self.connected
            if connected:
                self.waiting["disconnect"] = command["id"], False
        # Without a connection as well: it ends Paho's attempts to have one.
        self.client.disconnect()
        if not connected:
            self.say(id=command["id"], reason=0)

    def do_subscribe(self, command):
        filter, qos = command["filter"], command["qos"]
        if self.protocol == mqtt.MQTTv5:
            options = SubscribeOptions(
                qos, command["no_local"], command["retain_as_published"], command["retain_handling"]
            )
            properties = Properties(PacketTypes.SUBSCRIBE)
            if command["identifier"] is not None:
                properties.SubscriptionIdentifier = command["identifier"]
            _, mid = self.client.subscribe(filter, options=options, properties=properties)
        else:
            _, mid = self.client.subscribe(filter, qos)
        self.wait(command, mid)

    def do_unsubscribe(self, command):
        _, mid = self.client.unsubscribe(command["filter"])
        self.wait(command, mid)

    def do_publish(self, command):
        info = self.publish(command["message"])
        # Paho sends again what is above QoS 0.
        self.wait(command, info.mid, keeps=self.reconnects and command["message"]["qos"] > 0)

    def do_echo(self, command):
        self.echo = command["echo"]
        self.say(id=command["id"])

    def do_envelope_echo(self, command):
        code = command["code"]
        self.envelope = {**command, "filter": f"/+/+/POST/+/configs/serverinfo/{code}/"}
        _, mid = self.client.subscribe(self.envelope["filter"], command["qos"])
        self.wait(command, mid)

    # What becomes of them.

    def publish(self, message):
        properties = message_properties(message, PacketTypes.PUBLISH) if self.protocol == mqtt.MQTTv5 else None
        payload = to_bytes(message["payload"])
        return self.client.publish(message["topic"], payload, message["qos"], message["retain"], properties)

    def wait(self, command, mid, keeps=False):
        """Answers the command when `mid` is acknowledged, or says that this will not be."""
        with self.lock:
            answer = self.early.pop(mid, None)
            if answer is None and not self.connected and not keeps:
                answer = {"reason": None}
            if answer is None:
                self.waiting[mid] = command["id"], keeps
        if answer is not None:
            self.say(id=command["id"], **answer)

    def acknowledged(self, mid, **answer):
        with self.lock:
            id, _ = self.waiting.pop(mid, (None, None))
            if id is None:
                self.early[mid] = answer
        if id is not None:
            self.say(id=id, **answer)

    def on_connected(self, client, connack):
        with self.lock:
            if client is not self.client:
                return
            self.connected = connack["reason"] == 0
            id, self.connecting = self.connecting, None
        if id is None:
            self.say(event="connected", **connack)
        else:
            self.say(id=id, **connack)

    def on_disconnect(self, client, _data, rc, _properties=None):
        reason, client.disconnect_reason = client.disconnect_reason, None
        with self.lock:
            if client is not self.client:
                return
            self.connected = False
            id, self.connecting = self.connecting, None
            asked, _ = self.waiting.pop("disconnect", (None, None))
            lost = [mid for mid, (_, keeps) in self.waiting.items() if asked is not None or not keeps]
            lost = [self.waiting.pop(mid)[0] for mid in lost]
        for waiting in lost:
            self.say(id=waiting, reason=None)
        if id is not None:
            self.say(id=id, error=f"disconnected before CONNACK: {mqtt.error_string(int_of(rc))}")
        if asked is not None:
            self.say(id=asked, reason=0)
        elif id is None:
            self.say(event="disconnected", reason=reason)

    def on_message(self, _client, _data, message):
        said = {
            "topic": message.topic,
            "payload": to_text(message.payload),
            "qos": message.qos,
            "retain": bool(message.retain),
            "dup": bool(message.dup),
            "mid": message.mid,
        }
        properties = getattr(message, "properties", None)
        for ours, theirs in PROPERTIES.items():
            value = getattr(properties, theirs, None)
            if value is not None:
                said[ours] = to_text(value) if isinstance(value, bytes) else value
        self.say(message=said)
        if self.echo and "response_topic" in said:
            self.answer(
                {
                    "topic": said["response_topic"],
                    "payload": self.echo["prefix"] + said["payload"],
                    "qos": self.echo["qos"],
                    "retain": False,
                    "correlation_data": said.get("correlation_data"),
                },
                self.echo["delay"],
            )
        if self.envelope and mqtt.topic_matches_sub(self.envelope["filter"], message.topic):
            self.answer(
                {
                    "topic": "/".join(message.topic.split("/")[:5]),
                    "payload": f"echo[{self.envelope['code']}]:{said['payload']}",
                    "qos": self.envelope["qos"],
                    "retain": False,
                },
                0,
            )

    def answer(self, message, delay):
        if delay > 0:
            timer = threading.Timer(delay, self.publish, [message])
            timer.daemon = True
            timer.start()
        else:
            self.publish(message)


def message_properties(message, packet_type):
    properties = Properties(packet_type)
    for ours, theirs in PROPERTIES.items():
        value = message.get(ours)
        if value is None or value == []:
            continue
        if ours == "correlation_data":
            value = to_bytes(value)
        elif ours == "user_properties":
            value = [tuple(pair) for pair in value]
        setattr(properties, theirs, value)
    return properties


def int_of(reason):
    if isinstance(reason, list):
        reason = reason[0]
    return getattr(reason, "value", reason)


def to_bytes(text):
    return text.encode("latin-1")


def to_text(data):
    return bytes(data).decode("latin-1")


def die(hook):
    """A thread that fails takes the process with it: the test sees the end, and the log says why."""
    traceback.print_exception(hook.exc_type, hook.exc_value, hook.exc_traceback)
    os._exit(1)


if __name__ == "__main__":
    threading.excepthook = die
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    # Two files: one for both would forget what it has read ahead whenever it writes.
    commands, stream = (connection.makefile(mode, encoding="utf-8", newline="\n") for mode in "rw")
    Driver(commands, stream).run()
    # The test is gone.
    os._exit(0)
