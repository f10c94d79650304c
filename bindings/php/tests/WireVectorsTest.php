<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Exception\InvalidArgument;
use apachews\Exception\WireError;
use apachews\Request;
use apachews\Wire\Answer;
use apachews\Wire\ChannelReader;
use apachews\Wire\Close;
use apachews\Wire\Frame;
use apachews\Wire\Lane;
use apachews\Wire\Message;
use apachews\Wire\MessageReader;
use apachews\Wire\Moved;
use apachews\Wire\Pong;
use apachews\Wire\Publish;
use apachews\Wire\Violation;
use PHPUnit\Framework\Attributes\DataProvider;
use PHPUnit\Framework\TestCase;

/**
 * The sans-I/O core against docs/reference/wire-vectors.json.
 */
final class WireVectorsTest extends TestCase
{
    /**
     * @return array<string, array{array<string, mixed>}>
     */
    public static function frames(): array
    {
        return Vectors::of('frames');
    }

    /**
     * @return array<string, array{array<string, mixed>}>
     */
    public static function headers(): array
    {
        return Vectors::of('headers');
    }

    /**
     * @return array<string, array{array<string, mixed>}>
     */
    public static function closes(): array
    {
        return Vectors::of('closes');
    }

    /**
     * @return array<string, array{array<string, mixed>}>
     */
    public static function opens(): array
    {
        return Vectors::of('opens');
    }

    /**
     * @return array<string, array{array<string, mixed>}>
     */
    public static function answers(): array
    {
        return Vectors::of('answers');
    }

    /**
     * @return array<string, array{array<string, mixed>}>
     */
    public static function streams(): array
    {
        return Vectors::of('to_producer');
    }

    /**
     * @return array<string, array{array<string, mixed>}>
     */
    public static function lanes(): array
    {
        return Vectors::of('lanes');
    }

    /**
     * @dataProvider lanes
     *
     * @param array<string, mixed> $case
     */
    #[DataProvider('lanes')]
    public function testLaneIsEncodedOrDecoded(array $case): void
    {
        $lane = $case['lane'];
        $hex = $case['hex'];
        $bytes = (string) hex2bin($hex);
        $frame = (string) hex2bin($lane['frame'] ?? '');
        switch ($lane['kind']) {
            case Lane::ASK:
            case Lane::OWN:
                self::assertSame($hex, bin2hex(Lane::encode($lane['kind'])));
                break;
            case Lane::JOIN:
                self::assertSame($hex, bin2hex(Lane::join($lane['key'], $lane['number'])));
                break;
            case Lane::OFFER:
            case Lane::BRIDGE:
                $found = Lane::decode(substr($bytes, 2));
                self::assertNotNull($found);
                $expected = [$lane['kind'], $lane['key'] ?? 0, $lane['bridge'] ?? ''];
                self::assertSame($expected, [$found->kind, $found->key, $found->bridge]);
                break;
            case Lane::READY:
            case Lane::SLOW:
                for ($size = 0; $size <= strlen($bytes); $size++) {
                    $reader = new ChannelReader();
                    $found = $reader->receive(substr($bytes, 0, $size));
                    array_push($found, ...$reader->receive(substr($bytes, $size)));
                    self::assertSame([[$lane['kind'], $lane['numbers']]], $found);
                }
                break;
            case Lane::MULTICAST:
                self::assertSame($hex, bin2hex(Lane::multicast($lane['group'], $lane['excluded'], $frame)));
                break;
            case Lane::UNICAST:
                self::assertSame($hex, bin2hex(Lane::unicast($lane['number'], $frame)));
                break;
            default:
                $encoded = Lane::numbers($lane['kind'], $lane['numbers'], $lane['group'] ?? null);
                self::assertSame($hex, bin2hex($encoded));
        }
    }

    public function testLaneOfAnotherKindIsUnknown(): void
    {
        foreach (['', '04000000', '040000000000', '05ff', '05' . str_repeat('78', 125), '06', '0d'] as $hex) {
            self::assertNull(Lane::decode((string) hex2bin($hex)));
        }
    }

    public function testChannelReaderRejectsOtherFrames(): void
    {
        foreach (['81026869', '8700', '870106', '87020600', '870108', '877e4005', '8681'] as $hex) {
            try {
                $isRejected = (new ChannelReader())->receive((string) hex2bin($hex)) === [];
                self::assertFalse($isRejected, $hex);
                self::assertSame('870106', $hex); // READY of no client
            } catch (WireError) {
                self::assertNotSame('870106', $hex);
            }
        }
    }

    /**
     * @dataProvider frames
     *
     * @param array<string, mixed> $case
     */
    #[DataProvider('frames')]
    public function testFrameIsEncoded(array $case): void
    {
        $payload = (string) hex2bin($case['payload']);
        self::assertSame($case['hex'], bin2hex(Frame::encode($case['opcode'], $payload, $case['fin'])));
    }

    /**
     * @dataProvider headers
     *
     * @param array<string, mixed> $case
     */
    #[DataProvider('headers')]
    public function testHeaderIsEncodedAndDecoded(array $case): void
    {
        self::assertSame($case['hex'], bin2hex(Frame::encodeHeader($case['first'], $case['length'])));
        $header = (string) hex2bin($case['hex']);
        self::assertSame([$case['first'], $case['length'], strlen($header)], Frame::decodeHeader($header, 0));
        for ($size = 0; $size < strlen($header); $size++) {
            self::assertNull(Frame::decodeHeader(substr($header, 0, $size), 0));
        }
    }

    /**
     * @dataProvider closes
     *
     * @param array<string, mixed> $case
     */
    #[DataProvider('closes')]
    public function testCloseIsDecodedAndEncoded(array $case): void
    {
        $payload = (string) hex2bin($case['payload']);
        if (isset($case['error'])) {
            try {
                Close::decode($payload);
                self::fail('it was taken');
            } catch (WireError $error) {
                self::assertSame($case['error'], $error->closeCode);
            }
            return;
        }
        $close = Close::decode($payload);
        self::assertSame([$case['code'], $case['reason']], [$close->code, $close->reason]);
        self::assertSame(Frame::encode(Frame::CLOSE, $payload), $close->encode());
    }

    /**
     * @dataProvider opens
     *
     * @param array<string, mixed> $case
     */
    #[DataProvider('opens')]
    public function testOpenIsRead(array $case): void
    {
        $items = (new MessageReader())->receive((string) hex2bin($case['hex']));
        self::assertCount(1, $items);
        $item = $items[0];
        if (isset($case['error'])) {
            self::assertInstanceOf(Violation::class, $item);
            self::assertSame($case['error'], $item->code);
            return;
        }
        self::assertInstanceOf(Request::class, $item);
        $tls = $item->tls;
        $found = [
            'id' => $item->id,
            'resumed' => $item->resumed,
            'method' => $item->method,
            'uri' => $item->uri,
            'headers' => $item->headers,
            'remote' => $item->remote,
            'local' => $item->local,
            'scheme' => $item->scheme,
            'tls' => $tls === null ? null : [
                'version' => $tls->version,
                'cipher' => $tls->cipher,
                'server_name' => $tls->serverName,
                'client_subject' => $tls->clientSubject,
            ],
            'user' => $item->user,
            'vhost' => $item->vhost,
            'offered' => $item->offered,
            'subprotocol' => $item->subprotocol,
            'env' => $item->env,
            'answer_required' => $item->answerRequired,
            'rewritten_query' => $item->rewrittenQuery,
        ];
        foreach ($case['request'] as $name => $value) {
            self::assertArrayHasKey($name, $found);
            self::assertEquals($value, $found[$name], $name);
        }
    }

    /**
     * @dataProvider answers
     *
     * @param array<string, mixed> $case
     */
    #[DataProvider('answers')]
    public function testAnswerIsEncoded(array $case): void
    {
        $answer = $case['answer'];
        $headers = array_column($answer['headers'], 1, 0);
        $frame = $answer['accept']
            ? Answer::accept($answer['subprotocol'], $headers)->encode()
            : Answer::reject($answer['status'], $answer['body'], $headers)->encode();
        $expected = (string) hex2bin($case['hex']);
        self::assertSame(self::document($expected), self::document($frame));
        self::assertSame($expected[0], $frame[0]);
    }

    /**
     * Whole, byte by byte, and in two pieces, split at every position.
     *
     * @dataProvider streams
     *
     * @param array<string, mixed> $case
     */
    #[DataProvider('streams')]
    public function testStreamGivesTheSameItemsHoweverItIsSplit(array $case): void
    {
        $open = $case['open'] ? Vectors::open() : '';
        $bytes = (string) hex2bin($case['hex']);
        $expected = $case['items'];
        $limit = $case['max_message'] ?? MessageReader::DEFAULT_MAX_MESSAGE_BYTES;
        self::assertSame($expected, self::read($limit, [$open . $bytes], $case['open']), 'whole');
        self::assertSame($expected, self::read($limit, str_split($open . $bytes), $case['open']), 'bytes');
        for ($cut = 0; $cut <= strlen($bytes); $cut++) {
            $pieces = [$open . substr($bytes, 0, $cut), substr($bytes, $cut)];
            self::assertSame($expected, self::read($limit, $pieces, $case['open']), "cut at $cut");
        }
    }

    public function testBytesAfterTheEndAreIgnored(): void
    {
        foreach (["\x88\x00", "\x85\x00", "\x81\x01\xff"] as $end) {
            $reader = new MessageReader();
            $reader->receive(Vectors::open());
            self::assertCount(1, $reader->receive($end));
            self::assertSame([], $reader->receive("\x81\x01a"));
        }
    }

    public function testFramesBeyondTheLimitAreLeftForTheNextCall(): void
    {
        $reader = new MessageReader();
        $data = Vectors::open() . str_repeat("\x81\x01a", 4);
        self::assertCount(3, $reader->receive($data, 3));
        self::assertTrue($reader->hasUnread());
        self::assertCount(2, $reader->receive("\x81", 2));
        self::assertTrue($reader->hasUnread());
        self::assertSame([], $reader->receive('', 2));
        self::assertFalse($reader->hasUnread());
        self::assertCount(1, $reader->receive("\x01b", 2));
        self::assertTrue($reader->isIdle());
    }

    public function testReaderKnowsWhetherAMessageIsIncomplete(): void
    {
        $reader = new MessageReader();
        self::assertTrue($reader->isIdle());
        foreach ([[Vectors::open(), true], ["\x81", false], ["\x01a", true], ["\x01\x01a", false]] as [$data, $idle]) {
            $reader->receive($data);
            self::assertSame($idle, $reader->isIdle());
        }
    }

    public function testTimeForAFrameDoesNotGrowWithTheSquareOfItsPieces(): void
    {
        $frame = Frame::encode(0x7, str_repeat('x', 1 << 20));
        $reader = new MessageReader();
        $reader->receive(Vectors::open());
        $before = self::cpuSeconds();
        foreach (str_split($frame, 8) as $piece) {
            $reader->receive($piece);
        }
        // 0.05 s of CPU; four seconds if each piece copied all pieces before it.
        self::assertLessThan(1.0, self::cpuSeconds() - $before);
        self::assertSame([0x7], $reader->popIgnored());
    }

    private static function cpuSeconds(): float
    {
        $usage = getrusage();
        self::assertIsArray($usage);
        return $usage['ru_utime.tv_sec'] + $usage['ru_stime.tv_sec']
            + ($usage['ru_utime.tv_usec'] + $usage['ru_stime.tv_usec']) / 1e6;
    }

    public function testIgnoredFramesAreReportedOnce(): void
    {
        $reader = new MessageReader();
        $reader->receive(Vectors::open() . "\x87\x00\x8b\x00\x87\x00");
        self::assertSame([0x7, 0xb], $reader->popIgnored());
        self::assertSame([], $reader->popIgnored());
    }

    /**
     * Any bytes give items or one violation, independent of how they are split.
     */
    public function testMutatedStreamsGiveTheSameItemsHoweverTheyAreSplit(): void
    {
        mt_srand(6455); // reproducible
        $streams = array_values(Vectors::of('to_producer'));
        $violations = 0;
        for ($round = 0; $round < 3000; $round++) {
            $bytes = (string) hex2bin($streams[mt_rand(0, count($streams) - 1)][0]['hex']);
            $bytes .= (string) hex2bin($streams[mt_rand(0, count($streams) - 1)][0]['hex']);
            for ($changes = mt_rand(1, 4); $changes > 0 && $bytes !== ''; $changes--) {
                $bytes[mt_rand(0, strlen($bytes) - 1)] = chr(mt_rand(0, 255));
            }
            $bytes = Vectors::open() . $bytes;
            $whole = self::read(1000, [$bytes], true);
            $pieces = str_split($bytes, mt_rand(1, 7));
            self::assertSame($whole, self::read(1000, $pieces, true), bin2hex($bytes));
            self::assertSame($whole, self::read(1000, $pieces, true, mt_rand(1, 3)), bin2hex($bytes));
            self::assertSame($whole, self::read(1000, [$bytes], true, mt_rand(1, 3)), bin2hex($bytes));
            $errors = array_filter($whole, static fn (array $item): bool => isset($item['error']));
            self::assertLessThanOrEqual(1, count($errors));
            self::assertSame($errors, array_slice($whole, count($whole) - count($errors), null, true));
            $violations += count($errors);
        }
        self::assertGreaterThan(1000, $violations);
        self::assertLessThan(3000, $violations);
    }

    public function testInvalidCloseIsRejected(): void
    {
        $long = str_repeat('x', 124);
        $bad = [[999, ''], [1005, 'why'], [1006, ''], [5000, ''], [1000, $long], [1000, "\xff"]];
        foreach ($bad as [$code, $reason]) {
            try {
                (new Close($code, $reason))->encode();
                self::fail("$code was taken");
            } catch (InvalidArgument $error) {
                self::assertNotSame('', $error->getMessage());
            }
        }
    }

    /**
     * @param list<string> $pieces
     *
     * @return list<array<string, mixed>> as the vectors have them, without OPEN's
     */
    private static function read(int $limit, array $pieces, bool $opens, int $maxFrames = PHP_INT_MAX): array
    {
        $reader = new MessageReader($limit);
        $items = [];
        foreach ($pieces as $piece) {
            array_push($items, ...$reader->receive($piece, $maxFrames));
        }
        while ($reader->hasUnread()) {
            self::assertFalse($reader->isIdle());
            array_push($items, ...$reader->receive('', $maxFrames));
        }
        if ($opens) {
            self::assertInstanceOf(Request::class, array_shift($items));
        }
        return array_map(static fn (object $item): array => match (true) {
            $item instanceof Message && $item->isBinary => ['binary' => bin2hex($item->data)],
            $item instanceof Message => ['text' => $item->data],
            $item instanceof Close => ['close' => [$item->code, $item->reason]],
            $item instanceof Pong => ['pong' => bin2hex($item->payload)],
            $item instanceof Moved => ['move' => true],
            $item instanceof Publish => ['publish' => $item->group],
            $item instanceof Violation => ['error' => $item->code],
            default => ['another' => $item::class],
        }, $items);
    }

    private static function document(string $frame): mixed
    {
        $header = Frame::decodeHeader($frame, 0);
        self::assertNotNull($header);
        $document = json_decode(substr($frame, $header[2]), true, 512, JSON_THROW_ON_ERROR);
        self::assertIsArray($document);
        ksort($document);
        return $document;
    }
}
