<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Client;
use apachews\Delivery;
use apachews\EventType;
use apachews\Group;
use apachews\Server;
use apachews\Transport\Connection;
use apachews\Transport\EpollPoller;
use apachews\Transport\SelectPoller;
use apachews\Wire\Frame;
use apachews\Wire\Lane;
use PHPUnit\Framework\Attributes\DataProvider;
use PHPUnit\Framework\TestCase;

/**
 * Groups at the edge: what goes on a channel, and the order of each client's messages.
 */
final class ChannelTest extends TestCase
{
    private Directory $directory;
    private Server $server;
    private ChannelBridge $bridge;
    /** @var array<int, Client> by the index of ChannelBridge */
    private array $clients = [];

    protected function setUp(): void
    {
        if (!Connection::canReceiveDescriptors()) {
            self::markTestSkipped('ext-sockets is not loaded');
        }
        $this->directory = new Directory();
        $poller = EpollPoller::isAvailable() ? new EpollPoller() : new SelectPoller();
        $this->server = new Server("{$this->directory->path}/it.ws", poller: $poller, log: static fn () => null);
        $this->bridge = new ChannelBridge($this->server->path);
    }

    protected function tearDown(): void
    {
        if (isset($this->server)) {
            $this->server->close();
        }
        // PHPUnit keeps its test cases, and the programs of other tests would get the descriptors.
        unset($this->server, $this->bridge);
        $this->clients = [];
    }

    /**
     * Connects clients; the first ones are in the group "room".
     */
    private function connect(int $count, int $members = 0): Group
    {
        $room = $this->server->group('room');
        for ($number = 0; $number < $count; $number++) {
            $index = $this->bridge->connect();
            $event = $this->server->dequeue(Bridge::DEADLINE_S);
            self::assertSame(EventType::Accept, $event?->type());
            $this->clients[$index] = $event->getClient();
            if ($number < $members) {
                $room->add($this->clients[$index]);
            }
        }
        return $room;
    }

    /**
     * Lets both sides read, until neither has anything to read.
     */
    private function settle(): void
    {
        for ($quiet = 0; $quiet < 3; $quiet++) {
            $before = [$this->bridge->received, $this->bridge->frames];
            $this->bridge->readAll();
            $this->server->dequeue(0);
            if ($before !== [$this->bridge->received, $this->bridge->frames]) {
                $quiet = -1;
            }
        }
    }

    /**
     * Puts all clients on the channel.
     */
    private function putOnChannel(): void
    {
        foreach (['one', 'two'] as $text) {
            $this->server->broadcast($text); // leads to ASK, then to JOIN
            $this->settle();
        }
        $this->bridge->answerJoins();
        $this->settle();
        self::assertCount(count($this->clients), $this->bridge->members());
        $this->bridge->popFrames();
        $this->bridge->received = array_map(static fn () => [], $this->bridge->received);
    }

    public function testBroadcastsLeadToAChannel(): void
    {
        $this->connect(4, 2);
        $this->server->broadcast('one');
        $this->settle();
        self::assertSame(['C1'], $this->bridge->popFrames());
        $this->server->broadcast('two');
        $this->settle();
        self::assertSame(['C2', 'C2', 'C2', 'C2'], $this->bridge->popFrames());
        $this->server->broadcast('three'); // the JOIN is void after it
        $this->bridge->answerJoins();
        $this->settle();
        self::assertSame([], $this->bridge->members());
        $this->server->broadcast('four');
        $this->settle();
        $this->bridge->answerJoins();
        $this->settle();
        self::assertSame(['C2', 'C2', 'C2', 'C2', 'H9', 'H9'], $this->bridge->popFrames());
        self::assertCount(4, $this->bridge->members());
        self::assertCount(2, $this->bridge->members(1));
        self::assertEquals(new Delivery(4, 0), $this->server->broadcast('five'));
        $this->settle();
        self::assertSame(['H11'], $this->bridge->popFrames());
        self::assertSame(array_fill(0, 4, ['one', 'two', 'three', 'four', 'five']), $this->bridge->received);
    }

    public function testFewClientsAndSingleMessagesNeedNoChannel(): void
    {
        $this->connect(3);
        $this->server->broadcast('one');
        $this->settle();
        $this->connect(3);
        foreach ($this->clients as $client) {
            $client->send('two');
        }
        $this->settle();
        self::assertSame([], $this->bridge->frames);
    }

    public function testABridgeThatOffersNoneIsNotAsked(): void
    {
        $bridges = [];
        foreach ([null, null, null, 2, 2, 2] as $groups) {
            $open = $groups === null ? [] : ['bridge' => ['id' => 'bridge-1', 'groups' => $groups]];
            $bridges[] = new Bridge($this->server->path, $open);
            $this->server->dequeue(Bridge::DEADLINE_S);
        }
        $this->server->broadcast('one');
        $this->server->broadcast('two');
        foreach ($bridges as $bridge) {
            self::assertSame(['one', 'two'], [$bridge->readText(), $bridge->readText()]);
        }
    }

    public function testABridgeThatDoesNotAnswerIsAskedOnceASecond(): void
    {
        $this->bridge->offers = false;
        $this->connect(4);
        foreach (['one', 'two', 'three'] as $text) {
            $this->server->broadcast($text);
            $this->settle();
        }
        self::assertSame(['C1'], $this->bridge->popFrames());
        self::assertSame(array_fill(0, 4, ['one', 'two', 'three']), $this->bridge->received);
    }

    public function testAnOfferWithoutASocketLeadsToNoChannel(): void
    {
        $this->bridge->offers = false;
        $this->connect(4);
        $this->server->broadcast('one');
        $this->settle();
        self::assertSame(['C1'], $this->bridge->popFrames());
        $connection = $this->bridge->connections[0];
        $connection->send(Frame::LANE, pack('CN', Lane::OFFER, 1));
        $this->settle();
        $socket = socket_import_stream($connection->stream);
        $file = fopen(__FILE__, 'r');
        assert($socket instanceof \Socket && $file !== false);
        $message = [
            'iov' => [Frame::encode(Frame::TEXT, 'with a file')],
            'control' => [['level' => SOL_SOCKET, 'type' => SCM_RIGHTS, 'data' => [$file]]],
        ];
        self::assertSame(13, socket_sendmsg($socket, $message, 0));
        self::assertSame('with a file', $this->server->dequeue(Bridge::DEADLINE_S)?->read());
        $this->server->broadcast('two');
        $this->settle();
        self::assertSame(array_fill(0, 4, ['one', 'two']), $this->bridge->received);
        self::assertSame([], $this->bridge->popFrames());
    }

    public function testMessagesOfAClientOnTheChannel(): void
    {
        $room = $this->connect(5, 3);
        $this->putOnChannel();
        self::assertTrue($this->clients[0]->send('alone'));
        self::assertTrue($this->clients[4]->ping());
        self::assertEquals(new Delivery(3, 0), $room->broadcast('all'));
        self::assertEquals(new Delivery(2, 0), $room->broadcast('not 1', exclude: $this->clients[1]));
        self::assertEquals(new Delivery(3, 0), $room->broadcast('not 4', exclude: $this->clients[4]));
        $room->remove($this->clients[2]);
        $room->add($this->clients[3]);
        $room->add($this->clients[3]);
        $room->broadcast('now 3');
        $this->settle();
        self::assertSame(
            ['H12', 'H12', 'H11', 'H11', 'H11', 'H10', 'H9', 'H11'],
            $this->bridge->popFrames()
        );
        $ping = $this->bridge->received[4][0];
        self::assertSame(
            [
                ['alone', 'all', 'not 1', 'not 4', 'now 3'],
                ['all', 'not 4', 'now 3'],
                ['all', 'not 1', 'not 4'],
                ['now 3'],
                [$ping],
            ],
            $this->bridge->received
        );
        self::assertSame(8, strlen($ping));
    }

    public function testASlowClientGetsItsOwnConnection(): void
    {
        $this->connect(4);
        $this->putOnChannel();
        $this->server->broadcast('one');
        $this->bridge->tell(Lane::SLOW, [array_search(2, $this->bridge->clients, true)]);
        $this->server->dequeue(0);
        $this->server->dequeue(0);
        $this->clients[2]->send('two');
        $this->bridge->readConnection(2); // stops at OWN: the channel is not read yet
        self::assertSame([], $this->bridge->received[2]);
        $this->settle();
        self::assertSame(['one', 'two'], $this->bridge->received[2]);
        self::assertSame(['C3', 'H11', 'H8'], $this->bridge->popFrames());
    }

    public function testALongMessageGoesByTheConnections(): void
    {
        $this->connect(4);
        $this->putOnChannel();
        $long = str_repeat('x', 65537);
        $this->server->broadcast(substr($long, 1));
        self::assertEquals(new Delivery(4, 0), $this->server->broadcast($long));
        $this->settle();
        self::assertSame(array_fill(0, 4, [substr($long, 1), $long]), $this->bridge->received);
        self::assertSame(1, array_count_values($this->bridge->frames)['H11']);
        self::assertSame([], $this->bridge->members());
    }

    public function testClosedClientsLeaveTheChannel(): void
    {
        $this->connect(5, 5);
        $this->putOnChannel();
        $this->clients[0]->close();
        fclose($this->bridge->connections[1]->stream);
        unset($this->bridge->connections[1]);
        self::assertSame(EventType::ConnectionClosed, $this->server->dequeue(Bridge::DEADLINE_S)?->type());
        self::assertSame(3, $this->server->broadcast('x')->reached);
        $this->settle();
        self::assertSame(['CLOSE'], $this->bridge->received[0]);
        self::assertCount(3, $this->bridge->members());
        self::assertSame(['x'], $this->bridge->received[4]);
    }

    public function testTheEndOfAChannelAndAnotherBridge(): void
    {
        $this->connect(4);
        $this->putOnChannel();
        assert(is_resource($this->bridge->channel));
        fclose($this->bridge->channel);
        $this->bridge->channel = null;
        $this->settle();
        $this->server->broadcast('one');
        $this->settle();
        // That process has ended: it is not asked again, but the one that has the clients now is.
        self::assertSame([], $this->bridge->popFrames());
        foreach ($this->bridge->connections as $connection) {
            $connection->send(Frame::LANE, chr(Lane::BRIDGE) . 'bridge-2');
        }
        $this->settle();
        $this->server->broadcast('two');
        $this->settle();
        self::assertSame(['C1'], $this->bridge->popFrames());
        self::assertSame(array_fill(0, 4, ['one', 'two']), $this->bridge->received);
    }

    public function testAnInvalidFrameClosesTheChannel(): void
    {
        $this->connect(4);
        $this->putOnChannel();
        assert(is_resource($this->bridge->channel));
        fwrite($this->bridge->channel, Frame::encode(Frame::TEXT, 'no'));
        $this->server->dequeue(0);
        $this->server->dequeue(0);
        stream_set_blocking($this->bridge->channel, true);
        self::assertSame('', fread($this->bridge->channel, 1));
        $this->bridge->channel = null;
        $this->server->broadcast('one');
        $this->settle();
        self::assertSame(array_fill(0, 4, ['one']), $this->bridge->received);
    }

    public function testAChannelThatIsNotReadIsBounded(): void
    {
        $this->connect(4);
        $this->putOnChannel();
        $texts = [];
        for ($number = 0; $number < 100; $number++) {
            $texts[] = str_repeat(chr(33 + $number % 90), 30_000);
            $this->server->broadcast($texts[$number]);
            self::assertLessThan(4 * 1024 * 1024, $this->clients[0]->queuedBytes());
        }
        self::assertContains($this->clients[0]->queuedBytes() > 256 * 1024, [true]);
        $this->settle();
        self::assertSame(array_fill(0, 4, $texts), $this->bridge->received);
        self::assertContains('H8', $this->bridge->frames);
    }

    public function testDrainMovesTheClients(): void
    {
        $this->connect(4);
        $this->putOnChannel();
        $this->server->broadcast('last');
        $this->server->drain();
        $this->settle();
        self::assertSame(array_fill(0, 4, ['last', '']), $this->bridge->received); // then MOVE
        foreach ($this->bridge->connections as $connection) {
            $connection->send(Frame::MOVE);
        }
        for ($number = 0; $number < 4; $number++) {
            self::assertSame(EventType::ConnectionClosed, $this->server->dequeue(Bridge::DEADLINE_S)?->type());
        }
        self::assertNull($this->server->dequeue(Bridge::DEADLINE_S));
        assert(is_resource($this->bridge->channel));
        stream_set_blocking($this->bridge->channel, true);
        self::assertSame('', fread($this->bridge->channel, 1));
    }

    /**
     * @return array<string, array{int}>
     */
    public static function seeds(): array
    {
        $seeds = [];
        for ($seed = 1; $seed <= 30; $seed++) {
            $seeds["seed $seed"] = [$seed];
        }
        return $seeds;
    }

    /**
     * Random actions of the program and of the bridge: each client gets its messages in order.
     *
     * @dataProvider seeds
     */
    #[DataProvider('seeds')]
    public function testTheOrderIsKept(int $seed): void
    {
        mt_srand($seed);
        $room = $this->connect(8, 4);
        $expected = array_fill(0, 8, []);
        $wasOnChannel = 0;
        for ($step = 0; $step < 600; $step++) {
            $index = mt_rand(0, 7);
            $client = $this->clients[$index];
            $text = "message $step";
            switch (mt_rand(0, 11)) {
                case 0:
                case 1:
                    $this->server->broadcast($text);
                    foreach ($expected as $one => $_) {
                        $expected[$one][] = $text;
                    }
                    break;
                case 2:
                case 3:
                    $exclude = mt_rand(0, 1) === 1 ? $client : null;
                    $text = mt_rand(0, 30) === 0 ? str_pad($text, 70_000) : $text;
                    foreach ($this->clients as $one => $member) {
                        if ($room->contains($member) && $member !== $exclude) {
                            $expected[$one][] = $text;
                        }
                    }
                    $room->broadcast($text, exclude: $exclude);
                    break;
                case 4:
                    $client->send($text);
                    $expected[$index][] = $text;
                    break;
                case 5:
                    $room->contains($client) ? $room->remove($client) : $room->add($client);
                    break;
                case 6:
                    $this->bridge->readChannel();
                    break;
                case 7:
                    $this->bridge->readConnection($index);
                    break;
                case 8:
                    $this->bridge->readAll();
                    break;
                case 9:
                    $this->bridge->answerJoins();
                    if (mt_rand(0, 1) === 1) {
                        $this->settle();
                        $this->bridge->answerJoins();
                        $this->settle();
                    }
                    break;
                case 10:
                    if (mt_rand(0, 5) === 0) {
                        $this->bridge->tell(Lane::SLOW, array_slice($this->bridge->members(), 0, 2));
                    }
                    break;
                case 11:
                    $this->server->dequeue(0);
                    break;
            }
            $wasOnChannel += count($this->bridge->members());
        }
        $this->settle();
        self::assertSame($expected, $this->bridge->received);
        self::assertGreaterThan(0, $wasOnChannel);
    }
}
