<?php

/**
 * A chat with rooms: chat.ws?room=tea&name=Ann. The page of examples/chat works with it.
 *
 *     php chat.php /var/www/html/chat/chat.ws
 *
 * A client sends plain text and receives JSON objects: first {"room": "tea", "said": […]}
 * with the last messages, then {"name": "Ann", "text": "hello", "at": 1767225600} for each
 * message in the room, {"people": ["Ann", "Bob"]} when people join or leave, and
 * {"problem": "…"} if its own message was rejected.
 *
 * Clients do not notice a restart: at SIGTERM the program drains, and Apache holds the clients
 * until the next program listens. Name and room are in the URI, which that program gets too.
 * (The last messages are lost: a real chat would store them elsewhere.)
 */

declare(strict_types=1);

use apachews\Client;
use apachews\Event;
use apachews\Group;
use apachews\Server;

require_once __DIR__ . '/../autoload.php';

const MAX_TEXT = 1000; // characters
const MAX_ROOMS = 1000;
const MAX_PEOPLE = 200; // in a room: each message is sent this often
const REMEMBERED = 30; // messages per room, for people who join later
// The shortest interval between two lists of people: if a hundred people join at once, each
// would otherwise get a hundred lists.
const PEOPLE_EVERY_S = 0.2;
const POLICY_VIOLATION = 1008;
const MOVED = 1012;

/**
 * The chat's data of a client.
 */
final class Person
{
    public function __construct(public readonly Room $room, public readonly string $name)
    {
    }

    public static function of(Client $client): ?self
    {
        return $client->state instanceof self ? $client->state : null;
    }
}

/**
 * A room: its people, a group of the server, and their last messages.
 */
final class Room
{
    /** @var list<array{name: string, text: string, at: int}> */
    private array $said = [];
    /** When to send the list of people; null: unchanged. */
    public ?float $tellAt = null;

    public function __construct(public readonly string $name, public readonly Group $people)
    {
    }

    public function enter(Client $client, string $name): void
    {
        $client->state = new Person($this, $name);
        $this->people->add($client);
        // A resumed client has received these from another producer.
        if (!$client->request->resumed) {
            $client->send(json(['room' => $this->name, 'said' => $this->said]));
        }
        $this->peopleChanged();
    }

    public function say(string $name, string $text): void
    {
        $line = ['name' => $name, 'text' => $text, 'at' => time()];
        $this->said = array_slice([...$this->said, $line], -REMEMBERED);
        $this->people->broadcast(json($line));
    }

    public function peopleChanged(): void
    {
        $this->tellAt ??= microtime(true) + PEOPLE_EVERY_S;
    }

    public function tellPeople(): void
    {
        $this->tellAt = null;
        $names = [];
        foreach ($this->people as $client) {
            $names[] = Person::of($client)?->name ?? '';
        }
        usort($names, strcasecmp(...));
        $this->people->broadcast(json(['people' => $names]));
    }
}

/**
 * The rooms of a server.
 */
final class Chat
{
    /** @var array<Room> by name */
    private array $rooms = [];

    public function __construct(private readonly Server $server)
    {
    }

    public function run(): void
    {
        while (($event = $this->server->dequeue($this->nextTellingS())) !== null) {
            match ($event->type()) {
                ApacheWSAcceptEvent => $this->enter($event),
                ApacheWSIOEvent => $this->say($event),
                ApacheWSConnectionClosed => $this->leave($event),
                default => null,
            };
            foreach ($this->rooms as $room) {
                if ($room->tellAt !== null && $room->tellAt <= microtime(true)) {
                    $room->tellPeople();
                }
            }
        }
    }

    private function nextTellingS(): ?float
    {
        $times = array_filter(array_map(static fn (Room $room): ?float => $room->tellAt, $this->rooms));
        return $times === [] ? null : max(0.0, min($times) - microtime(true));
    }

    private function enter(Event $event): void
    {
        $client = $event->getClient();
        $query = $client->request->query;
        // If Apache requires a login, the user is the name.
        $name = preg_replace('/\s+/u', ' ', trim($client->request->user ?? $query['name'][0] ?? ''));
        if ($name === null || preg_match('/\A[^\p{C}]{1,30}\z/u', $name) !== 1) {
            $client->close(POLICY_VIOLATION, 'a name has 1 to 30 characters');
            return;
        }
        $key = $query['room'][0] ?? 'lobby';
        if (preg_match('/\A[a-z0-9-]{1,30}\z/', $key) !== 1) {
            $client->close(POLICY_VIOLATION, "a room's name is a-z, 0-9 and -, at most 30");
            return;
        }
        if (!isset($this->rooms[$key]) && count($this->rooms) >= MAX_ROOMS) {
            $client->close(POLICY_VIOLATION, 'there are too many rooms');
            return;
        }
        $room = $this->rooms[$key] ??= new Room($key, $this->server->group($key));
        if (count($room->people) >= MAX_PEOPLE) {
            $client->close(POLICY_VIOLATION, 'the room is full');
            return;
        }
        $room->enter($client, $name);
    }

    private function say(Event $event): void
    {
        $person = Person::of($event->getClient());
        $text = $event->read();
        if ($person === null || !is_string($text) || $event->isBinary()) {
            return;
        }
        if (preg_match('/\A.{' . (MAX_TEXT + 1) . '}/us', $text) === 1) {
            $event->write(json(['problem' => 'At most ' . MAX_TEXT . ' characters, please.']));
        } elseif (trim($text) !== '') {
            $person->room->say($person->name, $text);
        }
    }

    private function leave(Event $event): void
    {
        // Clients that moved to the next program are still in the room.
        $room = Person::of($event->getClient())?->room;
        if ($event->code !== MOVED && $room !== null) {
            $room->peopleChanged();
            if (count($room->people) === 0) {
                unset($this->rooms[$room->name]);
            }
        }
    }
}

/**
 * @param array<string, mixed> $value
 */
function json(array $value): string
{
    return json_encode($value, JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE);
}

// The limit of the send queue: beyond it a slow client is closed with 1013.
$server = new Server($argv[1] ?? '/var/www/html/chat/chat.ws', maxQueueBytes: 256 * 1024);
if (extension_loaded('pcntl')) {
    $server->onSignal(SIGTERM, $server->drain(...));
    $server->onSignal(SIGINT, $server->close(...));
}
(new Chat($server))->run();
